"""Large uploads: flat memory, and an answer for what is large on purpose."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peft_engine.records import build_dataset

# A child, so that the peak is of one build alone: what pytest and other tests hold does not count.
CHILD = """
import json, resource, sys
from pathlib import Path
from peft_engine.records import build_dataset
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
report = build_dataset({"all": Path(sys.argv[1])}, out_dir=Path(sys.argv[2]))
print(json.dumps({"grown": peak() - before, "status": report.status, "rows": report.rows,
                  "codes": [p.code for p in report.problems]}))
"""
MEBIBYTE = 2**20


def measured(path: Path, out_dir: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(out_dir)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("kind", "rows"), [("jsonl", 22_000), ("json", 11_000), ("csv", 11_000)])
def test_memory_is_flat_on_30_and_60_megabytes(tmp_path: Path, kind: str, rows: int) -> None:
    text = 'a sentence of some words, and \\"more\\" of them ' * 60
    path = tmp_path / f"x.{kind}"
    with path.open("w") as file:
        file.write({"jsonl": "", "json": "[", "csv": "text,label\n"}[kind])
        for i in range(rows):
            row = {"text": f"{i} {text}", "label": "ab"[i % 2]}
            if kind == "csv":
                file.write(f'"{row["text"].replace(chr(34), chr(34) * 2)}",{row["label"]}\n')
            else:
                file.write(("," if kind == "json" and i else "") + json.dumps(row) + "\n")
        file.write("]" if kind == "json" else "")
    assert path.stat().st_size > 30 * MEBIBYTE * rows / 11_000
    found = measured(path, tmp_path / "out")
    assert found["status"] == "ready"
    assert found["rows"] == rows
    assert found["grown"] < 30 * MEBIBYTE  # type: ignore[operator]


def test_a_gzip_bomb_stays_small(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(200):
            file.write(b'{"text":"' + b"a" * 1_000_000 + b'","label":"x"}\n')
    found = measured(path, tmp_path / "out")
    assert found["codes"] == ["unpacked_too_large"]
    assert found["grown"] < 40 * MEBIBYTE  # type: ignore[operator]


def test_one_line_of_5_megabytes_among_good_ones(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(20, json.dumps({"text": "long " * 1_000_000, "label": "a"}))
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    report = build_dataset({"all": path}, out_dir=tmp_path / "out")
    assert [(p.line, p.code) for p in report.problems] == [(21, "line_too_long")]
    assert report.rows == 40


def test_an_object_of_200_000_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({f"k{i}": i for i in range(200_000)}) + "\n")
    report = build_dataset({"all": path}, out_dir=tmp_path / "out")
    assert [(p.line, p.code) for p in report.problems] == [(1, "too_many_keys")]


def test_5_megabytes_without_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("x" * 5_000_000)
    report = build_dataset({"all": path}, out_dir=tmp_path / "out")
    assert [(p.line, p.code) for p in report.problems] == [(1, "line_too_long")]
