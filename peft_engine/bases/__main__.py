"""Fetch or convert a base once: ``python -m peft_engine.bases NAME REFERENCE --models-dir DIR``.

Prints one line of JSON that describes the base.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from peft_engine.bases.base import describe_base
from peft_engine.errors import BaseModelError


def main() -> int:
    """Describe a base, converting it when that has not been done yet.

    Returns:
        0, or 1 with the reason on standard error.
    """
    parser = argparse.ArgumentParser(prog="python -m peft_engine.bases", description=__doc__)
    parser.add_argument("name", help="name under which users know the base")
    parser.add_argument("reference", help="pkg:NAME, a folder, a GGUF file or a hub id")
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--allow-hub", action="store_true")
    asked = parser.parse_args()
    try:
        info = describe_base(
            asked.reference,
            name=asked.name,
            models_dir=asked.models_dir,
            allow_hub=asked.allow_hub,
        )
    except BaseModelError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(json.dumps(dataclasses.asdict(info), default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
