"""Turns an upload into canonical JSONL files, one a split, and a report. Bounded memory.

Rows stream through once: read, validated, counted, and written to a spill file in the output
directory. When all is well the spill file is dealt to the splits; when not, nothing is left.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

import numpy as np

from peft_engine.records.census import Census, Codes, canonical_json
from peft_engine.records.checks import (
    check_copies,
    check_leakage,
    check_rows,
    check_shares,
    check_splits,
)
from peft_engine.records.options import SPLIT_NAMES, Limits, SourceFile, SplitSpec, TokenMeasure
from peft_engine.records.problems import NoticeList, Problem, ProblemList, shown
from peft_engine.records.reading import FileReading
from peft_engine.records.report import DatasetReport, DuplicateReport, LeakReport, SplitReport
from peft_engine.records.row_reader import ReadRow, Shape
from peft_engine.records.splits import TRAIN, deal
from peft_engine.records.tasks import TASKS
from peft_engine.records.tokens import TokenCensus, estimate

_LISTED_LABELS = 1_000
_FILE_NAMES = ("all", *SPLIT_NAMES)


class BuildCancelled(Exception):
    """The caller asked to stop; nothing is left in the output directory."""


def build_dataset(
    files: Mapping[str, Path | SourceFile],
    *,
    out_dir: Path,
    task: str | None = None,
    format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    split: SplitSpec | None = None,
    limits: Limits | None = None,
    measures: Sequence[TokenMeasure] = (),
    cancelled: Callable[[], bool] | None = None,
) -> DatasetReport:
    """Read, validate, split and write one data set. Bad data is reported, never raised.

    Args:
        files: ``all`` or ``train`` is the main file; ``validation`` and ``test`` may stand beside
            it. Splits without a file are dealt out of the main one.
        out_dir: Where ``train.jsonl`` and so on are written; made if it is missing.
        task: A name of ``TASKS``; None: told from the first rows.
        format: Stated format; None: told from the content.
        mapping: ``{our field: their column}``.
        split: Fractions, seed and split column.
        limits: Bounds.
        measures: Token counters of base models; none: an estimate is used.
        cancelled: Asked now and then; True stops the build with ``BuildCancelled``.

    Returns:
        The report; the split files lie in ``out_dir`` when its status is ``ready``.

    Raises:
        ValueError: ``files`` has no main file or an unknown name (a fault of the calling code).
    """
    if not ({"all", "train"} & files.keys()) or files.keys() - set(_FILE_NAMES):
        msg = (
            f"files must have 'all' or 'train' and may have 'validation' and 'test': {list(files)}"
        )
        raise ValueError(msg)
    sources = {
        name: item if isinstance(item, SourceFile) else SourceFile(item, item.name)
        for name in _FILE_NAMES
        if (item := files.get(name)) is not None
    }
    build = _Build(sources, out_dir, limits or Limits(), split or SplitSpec(), cancelled)
    return build.run(task, format, dict(mapping or {}), measures)


class _Build:
    """One build while it runs."""

    def __init__(
        self,
        sources: Mapping[str, SourceFile],
        out_dir: Path,
        limits: Limits,
        split: SplitSpec,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self.sources = sources
        self.out_dir = out_dir
        self.limits = limits
        self.split = split
        self.cancelled = cancelled or (lambda: False)
        self.problems = ProblemList()
        self.notices = NoticeList()
        self.shape = Shape()
        self.readings: list[FileReading] = []
        self.census: Census | None = None
        self.tokens: TokenCensus | None = None
        self.dealt: Codes = np.zeros(0, dtype=np.int64)
        self.duplicates = DuplicateReport()
        self.leakage = LeakReport()

    def run(
        self,
        task: str | None,
        format: str | None,
        mapping: Mapping[str, str],
        measures: Sequence[TokenMeasure],
    ) -> DatasetReport:
        """Do it all; see ``build_dataset``."""
        splits: dict[str, SplitReport] = {}
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._remove_splits()
        with TemporaryFile("w+b", dir=self.out_dir) as spill:
            if task is not None and task not in TASKS:
                self.problems.add(
                    "task_unknown",
                    f"there is no task {shown(task)}",
                    f"tasks are {', '.join(TASKS)}",
                )
            else:
                self.shape.task = TASKS[task] if task else None
                self._read(spill, format, mapping, measures)
                self._check()
            self._stop_if_asked()
            if not self.problems.total and self.census:
                spill.seek(0)
                splits = self._write(spill)
        return self._report(splits, mapping)

    def _read(
        self,
        spill: BinaryIO,
        format: str | None,
        mapping: Mapping[str, str],
        measures: Sequence[TokenMeasure],
    ) -> None:
        for name, source in self.sources.items():
            main = name in {"all", "train"}
            column = self.split.column if main and len(self.sources) == 1 else ""
            reading = FileReading(
                source,
                name,
                self.shape,
                self.problems,
                self.notices,
                self.limits,
                format,
                mapping,
                column,
                self._stop_if_asked,
            )
            self.readings.append(reading)
            with closing(reading.rows()) as rows:
                for read in rows:
                    if not self._count(read, name, spill, measures):
                        return

    def _count(
        self, read: ReadRow, name: str, spill: BinaryIO, measures: Sequence[TokenMeasure]
    ) -> bool:
        """Spill and count one row; False when the set has grown past a limit."""
        if self.census is None or self.tokens is None:
            schema = self.shape.task
            if schema is None:
                return False
            self.census = Census(schema)
            self.tokens = TokenCensus(measures or [estimate(schema.name)], self.notices)
        text = canonical_json(read.record)
        spill.write(text.encode() + b"\n")
        self.census.add(read, read.split or name, text)
        self.tokens.add(self.census.schema.text_of(read.record), name, read.line)
        if len(self.census.label_counts) <= self.limits.max_labels:
            return True
        self.problems.add(
            "too_many_labels",
            f"more than {self.limits.max_labels} labels: are the columns swapped?",
            "a label is the name of a class; check which column is which",
            file=name,
            line=read.line,
            column="label",
        )
        return False

    def _stop_if_asked(self) -> None:
        if self.cancelled():
            raise BuildCancelled

    def _check(self) -> None:
        census = self.census
        if census is None:
            return
        if not self.problems.total:
            check_rows(
                census, [r.check for r in self.readings], self.problems, self.notices, self.limits
            )
        self.duplicates = check_copies(census, self.notices)
        self.dealt = self._deal(census)
        self.leakage = check_leakage(census, self.dealt, self.notices)
        if not self.problems.total:
            check_splits(census, self.dealt, self.problems, self.notices)

    def _deal(self, census: Census) -> Codes:
        """Split of every row: its file's, its column's, or dealt out of the main file."""
        names = {"all": -1, **{name: code for code, name in enumerate(SPLIT_NAMES)}}
        homes = np.array([names[name] for name in census.names], dtype=np.int64)
        dealt = homes[census.codes("home")]
        if any(reading.deals_by_column for reading in self.readings):
            return dealt
        main = np.flatnonzero(dealt < 1)  # "all" and "train" are the same main file
        fractions = [
            0.0 if name in self.sources and name != "train" else share
            for name, share in zip(SPLIT_NAMES, self.split.fractions, strict=True)
        ]
        total = sum(fractions)
        shares = (fractions[0] / total, fractions[1] / total, fractions[2] / total)
        if shares == (1.0, 0.0, 0.0):
            dealt[main] = TRAIN
            return dealt
        dealt[main] = deal(
            census.hashes("near")[main], census.strata()[main], shares, self.split.seed
        )
        self._keep_labels_known(census, dealt, main)
        if not self.problems.total:  # refused rows are in no split
            check_shares(dealt[main], shares, self.notices)
        return dealt

    def _keep_labels_known(self, census: Census, dealt: Codes, main: Any) -> None:
        """A label that train lost comes back with a whole group; the lowest hash goes first."""
        codes, near = census.codes("labels"), census.hashes("near")
        known = {x for c in np.unique(codes[dealt == TRAIN]) for x in census.label_sets[c]}
        lost = main[dealt[main] != TRAIN]
        for row in lost[np.argsort(near[lost])].tolist():
            labels = census.label_sets[int(codes[row])]
            if not known.issuperset(labels):
                group = main[near[main] == near[row]]
                dealt[group] = TRAIN
                known.update(x for c in codes[group].tolist() for x in census.label_sets[c])

    def _split_paths(self) -> list[Path]:
        return [self.out_dir / f"{name}.jsonl" for name in SPLIT_NAMES]

    def _remove_splits(self) -> None:
        for path in self._split_paths():
            path.unlink(missing_ok=True)

    def _write(self, spill: IO[bytes]) -> dict[str, SplitReport]:
        census = self.census
        if census is None:
            return {}
        digests = [hashlib.sha256() for _ in SPLIT_NAMES]
        sizes = [0, 0, 0]
        counts: list[Counter[str]] = [Counter(), Counter(), Counter()]
        codes = census.codes("labels").tolist()
        with ExitStack() as undo:
            undo.callback(self._remove_splits)
            with ExitStack() as opened:
                outs = [opened.enter_context(path.open("wb")) for path in self._split_paths()]
                for line, split, code in zip(spill, self.dealt.tolist(), codes, strict=True):
                    outs[split].write(line)
                    digests[split].update(line)
                    sizes[split] += len(line)
                    counts[split].update(census.label_sets[code])
            undo.pop_all()
        rows = np.bincount(self.dealt, minlength=3).tolist()
        return {
            name: SplitReport(
                file=f"{name}.jsonl",
                rows=rows[at],
                bytes=sizes[at],
                sha256=digests[at].hexdigest(),
                label_counts=_listed(counts[at]),
            )
            for at, name in enumerate(SPLIT_NAMES)
        }

    def _report(self, splits: dict[str, SplitReport], mapping: Mapping[str, str]) -> DatasetReport:
        main = self.readings[0] if self.readings else None
        size, sha256 = _fingerprint([source.path for source in self.sources.values()])
        census, shape = self.census, self.shape
        labels = sorted(census.label_counts)[:_LISTED_LABELS] if census else []
        tokens = self.tokens.report() if self.tokens else {}
        return DatasetReport(
            status="invalid" if self.problems.total else "ready",
            rows=len(census) if census else 0,
            rows_read=sum(r.check.rows_read for r in self.readings),
            bytes=size,
            sha256=sha256,
            format=main.found_format if main else None,
            compression=main.compression if main else None,
            encoding=main.encoding if main else None,
            task=shape.task.name if shape.task else None,
            kind=shape.form.kind if shape.form else None,
            splits=splits,
            labels=labels,
            label_counts=_listed(census.label_counts) if census else {},
            tokens=tokens,
            duplicates=self.duplicates,
            leakage=self.leakage,
            problems=sorted(self.problems.listed, key=_place),
            problems_total=self.problems.total,
            warnings=self.notices.listed("warning"),
            notes=self.notices.listed("note"),
            columns_found=main.columns_found if main else [],
            mapping=dict(mapping),
        )


def _place(problem: Problem) -> tuple[int, int]:
    return _FILE_NAMES.index(problem.file or "all"), problem.line or 0


def _listed(counts: Counter[str]) -> dict[str, int]:
    """The commonest labels, the commonest first, ties by name: the same in every run."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:_LISTED_LABELS])


def _fingerprint(paths: Sequence[Path]) -> tuple[int, str]:
    """Bytes of all files, and the digest of the one file or of the digests of all."""
    digests, size = [], 0
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        size += path.stat().st_size
    if len(digests) == 1:
        return size, digests[0]
    return size, hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_canonical(source: Path | Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Read a split file that ``build_dataset`` wrote.

    Args:
        source: Its path, or its lines, such as an open file gives them.

    Yields:
        One record a line.
    """
    with ExitStack() as stack:
        lines = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        for line in lines:
            yield json.loads(line)
