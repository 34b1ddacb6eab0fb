"""Checks that need the whole set: rows, classes, copies, conflicts, leakage, unseen labels."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from peft_engine.records.census import Census, Codes
from peft_engine.records.options import SPLIT_NAMES, Limits
from peft_engine.records.problems import NoticeList, ProblemList, shown
from peft_engine.records.report import DuplicateReport, LeakExample, LeakPair, LeakReport
from peft_engine.records.row_check import RowCheck
from peft_engine.records.splits import TRAIN

# A class this many times larger than another drowns it in accuracy.
_IMBALANCE = 20
# A label spelled otherwise in under this share of its rows is a slip rather than a choice.
_SLIP_SHARE = 0.2
# Classes repeat. With a label for (nearly) every row the label column is something else.
_NAMES_SHARE = 0.9
_NAMED = 10
_EXAMPLES = 20
# Of the rows that were asked for; copies and small classes rarely cost a split as much.
_SMALL_SPLIT = 0.5
_CLASS_TASKS = frozenset({"text-classification", "relation-extraction"})


def check_rows(
    census: Census,
    checks: Sequence[RowCheck],
    problems: ProblemList,
    notices: NoticeList,
    limits: Limits,
) -> None:
    """Check what does not depend on the splits.

    Args:
        census: All accepted rows.
        checks: One for each file, with what it observed.
        problems: Where problems go.
        notices: Where notices go.
        limits: Fewest rows.
    """
    if len(census) < limits.min_rows:
        problems.add(
            "too_few_rows",
            f"the set has {len(census)} of the at least {limits.min_rows} rows that training and "
            "testing need",
            "add rows",
        )
        return
    if census.schema.name in _CLASS_TASKS:
        _check_classes(census, problems)
    _check_label_types(checks, problems, notices)
    _check_observations(census, checks, problems, notices)
    if census.label_counts:
        _check_twins(census, notices)
    if census.schema.name in _CLASS_TASKS:
        _check_imbalance(census, notices)


def _check_classes(census: Census, problems: ProblemList) -> None:
    labels = census.label_counts
    if len(labels) < 2:
        found = f"the only label is {shown(next(iter(labels)))}" if labels else "no row has a label"
        problems.add(
            "single_class",
            f"{found}; classification needs two at least",
            "add rows of other classes",
            column="label",
        )
    elif len(labels) >= _NAMES_SHARE * len(census) and max(map(len, census.label_sets)) == 1:
        problems.add(
            "labels_like_rows",
            f"as many labels as rows ({len(labels)} labels in {len(census)} rows): are the columns "
            "swapped?",
            "a label must stand in several rows; check which column is which, or send a mapping",
            column="label",
        )


def _check_label_types(
    checks: Sequence[RowCheck], problems: ProblemList, notices: NoticeList
) -> None:
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str | None, int]] = {}
    for check in checks:
        for name, seen in check.observed("label_type").items():
            counts[name] += seen.count
            first.setdefault(name, (check.file, seen.first_line))
    if len(counts) > 1:
        told = ", ".join(f"{name} ({count} rows)" for name, count in counts.items())
        for file, line in first.values():
            problems.add(
                "label_types_mixed",
                f"labels are of several types: {told}",
                "write every label as a text in quotes",
                file=file,
                line=line,
                column="label",
            )
    elif counts and "text" not in counts:
        name = next(iter(counts))
        notices.add(
            "label_not_text",
            f'labels are of the type {name}; they are kept as text: 1 is "1"',
            "write labels as texts in quotes",
            count=counts[name],
        )


def _check_observations(
    census: Census, checks: Sequence[RowCheck], problems: ProblemList, notices: NoticeList
) -> None:
    task = census.schema.name
    if task == "regression" and len(np.unique(census.hashes("target"))) == 1:
        problems.add(
            "constant_value",
            "the number to predict is the same in every row",
            "there is nothing to learn; check the column",
            column="value",
        )
    if task == "token-classification":
        if not census.label_counts:
            problems.add(
                "no_entities",
                "there is no entity to learn: every tag is O",
                "check the tags",
                column="tags",
            )
        elif not any(check.observed("tag_prefix").get("B") for check in checks):
            repaired = notices.drop("tags_repaired")
            if repaired:
                notices.add(
                    "iob1_tags",
                    f"no B- tag in the whole set: the tags were read as IOB1, "
                    f"and {repaired} I- tags that begin an entity became B-",
                    "write BIO tags if neighbouring entities of one type must be told apart",
                    count=repaired,
                )
    if task == "multiple-choice":
        answers = {name for check in checks for name in check.observed("answer")}
        if answers == {"0"}:
            notices.add(
                "answers_always_first",
                "every answer is index 0: a model can learn the place alone",
                "shuffle the choices of each row",
            )


def _check_twins(census: Census, notices: NoticeList) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for label in census.label_counts:
        groups[" ".join(label.casefold().split())].append(label)
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        return
    told = "; ".join(" and ".join(shown(label) for label in group) for group in twins[:_NAMED])
    slip = any(_is_slip(group, census.label_counts) for group in twins)
    notices.add(
        "label_twins",
        f"{len(census.label_counts)} labels look like {len(groups)}: they differ in case or blanks "
        f"alone ({told}); they are kept apart",
        "write each label in one way, if they mean the same",
        level="warning" if slip else "note",
        count=sum(len(group) for group in twins),
    )


def _is_slip(group: list[str], counts: Counter[str]) -> bool:
    total = sum(counts[label] for label in group)
    blanks = any(label != " ".join(label.split()) for label in group)
    return blanks or min(counts[label] for label in group) < _SLIP_SHARE * total


def _check_imbalance(census: Census, notices: NoticeList) -> None:
    if len(census.label_counts) < 2:
        return
    ordered = census.label_counts.most_common()
    (most, high), (least, low) = ordered[0], ordered[-1]
    if high > _IMBALANCE * low and low > 1:
        notices.add(
            "imbalance",
            f"{shown(most)} has {high} rows and {shown(least)} has {low}: accuracy will hide the "
            "smaller one; look at macro-F1 too",
            "add rows of the smaller class",
        )


def check_copies(census: Census, notices: NoticeList) -> DuplicateReport:
    """Count copies of rows and inputs with several labels.

    Args:
        census: All accepted rows.
        notices: Where notices go.

    Returns:
        The counts.
    """
    inputs, targets = census.hashes("input"), census.hashes("target")
    exact = len(census) - len(np.unique(census.hashes("row")))
    near = len(np.unique(inputs)) - len(np.unique(census.hashes("near")))
    with np.errstate(over="ignore"):  # wrapping multiplication mixes the two hashes into one
        answered = inputs ^ (targets * np.uint64(0x9E3779B97F4A7C15))
    first = np.unique(answered, return_index=True)[1]
    conflicts = int((np.unique(inputs[first], return_counts=True)[1] > 1).sum())
    if exact:
        notices.add(
            "duplicate_rows",
            f"{exact} of {len(census)} rows are copies of another row",
            "delete them, unless their weight is meant",
            count=exact,
        )
    if near:
        notices.add(
            "near_duplicate_rows",
            f"{near} rows differ from another one in case, blanks or punctuation alone",
            level="note",
            count=near,
        )
    if conflicts:
        notices.add(
            "conflicting_labels",
            f"{conflicts} texts stand with more than one label",
            "decide on one label for each text",
            count=conflicts,
        )
    return DuplicateReport(exact_rows=exact, near_rows=near, conflicting_inputs=conflicts)


def check_leakage(census: Census, dealt: Codes, notices: NoticeList) -> LeakReport:
    """Find inputs that stand in more than one split.

    Args:
        census: All accepted rows.
        dealt: (rows,) split of each row.
        notices: Where notices go.

    Returns:
        Counts by pair of splits, and examples by line.
    """
    exact_rows: set[int] = set()
    near_rows: set[int] = set()
    pairs: dict[str, LeakPair] = {}
    examples: list[LeakExample] = []
    inputs, folded, lines = census.hashes("input"), census.hashes("near"), census.codes("line")
    for a, b in ((0, 1), (0, 2), (1, 2)):
        rows_a, rows_b = np.flatnonzero(dealt == a), np.flatnonzero(dealt == b)
        exact = rows_b[np.isin(inputs[rows_b], inputs[rows_a])]
        near = np.setdiff1d(rows_b[np.isin(folded[rows_b], folded[rows_a])], exact)
        if not len(exact) and not len(near):
            continue
        pairs[f"{SPLIT_NAMES[a]}/{SPLIT_NAMES[b]}"] = LeakPair(exact=len(exact), near=len(near))
        exact_rows.update(exact.tolist())
        near_rows.update(near.tolist())
        for row in np.concatenate([exact, near])[: _EXAMPLES - len(examples)].tolist():
            other = int(rows_a[folded[rows_a] == folded[row]][0])
            examples.append(
                LeakExample(
                    split=SPLIT_NAMES[b],
                    line=int(lines[row]),
                    other_split=SPLIT_NAMES[a],
                    other_line=int(lines[other]),
                )
            )
    near_rows -= exact_rows
    if pairs:
        told = "; ".join(f"{n}: {p.exact} exact, {p.near} near" for n, p in pairs.items())
        notices.add(
            "leakage",
            f"{len(exact_rows)} exact and {len(near_rows)} near inputs stand in more than one "
            f"split ({told}): scores on them say nothing",
            "delete them from the later split; a job trains on such a set only with allow_leakage"
            if exact_rows
            else "look at them: they differ in case or punctuation",
            count=len(exact_rows) + len(near_rows),
        )
    return LeakReport(
        exact_rows=len(exact_rows),
        near_rows=len(near_rows),
        pairs=pairs,
        examples=examples,
        blocks=bool(exact_rows),
    )


def check_splits(census: Census, dealt: Codes, problems: ProblemList, notices: NoticeList) -> None:
    """Check labels of each split against train's, and say where the rows of rare classes went.

    Args:
        census: All accepted rows.
        dealt: (rows,) split of each row.
        problems: Where problems go.
        notices: Where notices go.
    """
    if not (dealt == TRAIN).any():
        problems.add("empty_split", "the train split has no rows", "give rows to train")
        return
    _check_unseen(census, dealt, problems, notices)
    if census.schema.name not in _CLASS_TASKS:
        return
    rare = [label for label, count in census.label_counts.items() if count == 1]
    if rare:
        where = _splits_of(census, dealt, set(rare[:_NAMED]))
        told = ", ".join(f"{shown(label)} (in {where[label]})" for label in rare[:_NAMED])
        notices.add(
            "rare_class",
            f"{len(rare)} classes have a single row: {told}; they cannot be "
            "both learned and tested",
            "add rows of these classes",
            count=len(rare),
        )


def check_shares(dealt: Codes, fractions: tuple[float, float, float], notices: NoticeList) -> None:
    """Tell which splits got far fewer rows than they were to get.

    Args:
        dealt: (rows,) split of each row that was dealt.
        fractions: Shares of train, validation and test.
        notices: Where notices go.
    """
    total = len(dealt)
    counts = np.bincount(dealt, minlength=len(SPLIT_NAMES)).tolist()
    small = [
        f"{name} has {count} of {total} rows (asked: {100 * share:.3g} %)"
        for name, count, share in zip(SPLIT_NAMES, counts, fractions, strict=True)
        if count < _SMALL_SPLIT * share * total
    ]
    if small:
        notices.add(
            "small_split",
            f"{', '.join(small)}: copies stay on one side, and train has every label",
            "add rows, take copies out, or upload a file for each split",
            count=len(small),
        )


def _splits_of(census: Census, dealt: Codes, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for code, split in zip(census.codes("labels").tolist(), dealt.tolist(), strict=True):
        for label in wanted.intersection(census.label_sets[code]):
            found[label] = SPLIT_NAMES[split]
    return found


def _check_unseen(census: Census, dealt: Codes, problems: ProblemList, notices: NoticeList) -> None:
    codes = census.codes("labels")
    known = {
        label for code in np.unique(codes[dealt == TRAIN]) for label in census.label_sets[code]
    }
    lines, homes = census.codes("line"), census.homes()
    strange_sets = {
        code: [label for label in census.label_sets[code] if label not in known]
        for code in np.unique(codes[dealt != TRAIN]).tolist()
    }
    strange_codes = [code for code, strange in strange_sets.items() if strange]
    rows = np.flatnonzero((dealt != TRAIN) & np.isin(codes, strange_codes)).tolist()
    for row in rows:
        for label in strange_sets[int(codes[row])]:
            said = f"the label {shown(label)} of {SPLIT_NAMES[int(dealt[row])]} is not in train"
            fix = "add such rows to train, or correct the label"
            line = int(lines[row])
            if census.schema.name in _CLASS_TASKS:
                problems.add("unseen_label", said, fix, file=homes[row], line=line, column="label")
            else:
                # An entity of an unknown type counts as missed; that is an honest score.
                notices.add("unseen_label", said, fix, file=homes[row], line=line, about=label)
