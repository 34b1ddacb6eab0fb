"""What is wrong with an upload: problems (they refuse it) and notices (they do not).

Knows nothing of files, tasks or HTTP. Every code that a report can carry stands in ``CODES``; the
documentation is made from that table and a test holds the two together.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

# All problems are counted; so many are listed, as the HTTP contract says.
LISTED_PROBLEMS = 1_000
# A notice stands once per file and names its first lines only.
LISTED_LINES = 10
# A quotation of the user's data inside a message.
SHOWN_CHARACTERS = 60
COLUMN_CHARACTERS = 200

CODES: Mapping[str, str] = {
    # the file as a whole
    "empty_file": "The file has 0 bytes.",
    "no_rows": "The file holds no row (only blank lines, or a header alone).",
    "not_utf8": "A byte that is not UTF-8; the file was saved in another encoding.",
    "not_utf16": "The file begins with a UTF-16 or UTF-32 mark and breaks that encoding later.",
    "utf16_without_mark": "The file looks like UTF-16 without a byte order mark.",
    "html_file": "A web page (HTML or XML), often a saved error page.",
    "lfs_pointer": "A Git LFS pointer in place of the data.",
    "zip_archive": "A zip archive.",
    "excel_workbook": "An Excel workbook.",
    "archive_unsupported": "A packed file that is not read (bzip2, xz, zstd, tar, 7z, rar).",
    "binary_file": "A file that is no text at all (PDF, picture, SQLite, pickle, ...).",
    "gzip_damaged": "The gzip data is cut off or damaged.",
    "gzip_nested": "gzip inside gzip.",
    "unpacked_too_large": "The unpacked data is over the limit, or unpacks suspiciously far.",
    "parquet_truncated": "A Parquet file that is cut off (its footer is missing).",
    "parquet_damaged": "A Parquet file whose footer or pages are nonsense.",
    "too_many_rows": "More rows than the limit.",
    "too_few_rows": "Fewer rows than training and its splits need.",
    "format_unknown": "The stated format is not one of those that are read.",
    # a line
    "line_too_long": "A line (or record) is longer than the limit.",
    "not_json": "The line is not JSON.",
    "json_cut_off": "The last line is not complete JSON: the upload looks cut off.",
    "object_over_lines": "An object is spread over several lines; JSON Lines needs one a line.",
    "several_objects": "More than one JSON value on one line.",
    "single_quotes": "Strings in single quotes (Python's repr, not JSON).",
    "not_an_object": "A JSON value that is no object.",
    "duplicate_key": "One key stands twice in an object.",
    "not_a_number": "NaN, Infinity or a number beyond 1.8e308.",
    "too_deep": "Nested more deeply than the limit.",
    "integer_too_large": "An integer of more digits than the limit.",
    "too_many_keys": "An object with more keys than the limit.",
    "control_character": "A raw control character inside JSON, or a NUL anywhere.",
    "nul_character": "A text holds U+0000, which data bases cannot store.",
    "lone_surrogate": "A text holds half of a surrogate pair, which is no valid Unicode.",
    "array_damaged": "The JSON array breaks off or its commas and brackets do not match.",
    # tables
    "unequal_columns": "A row has more or fewer columns than the header.",
    "unbalanced_quote": "A quote is opened and never closed.",
    "stray_quote": "Text stands after a closing quote, in a cell over several lines.",
    "duplicate_column": "Two columns have the same name.",
    "unnamed_column": "A column holds values and has no name.",
    # columns and rows
    "mapping_wrong": "The given mapping names a field or a column that does not exist.",
    "columns_missing": "The columns (keys) that the task needs are not there.",
    "wrong_task": "The rows are of another task.",
    "task_unknown": "The task was not given and cannot be told from the rows, or has no such name.",
    "mixed_rows": "A row of another kind than the rows before.",
    "missing_field": "A needed field is absent.",
    "null_value": "A needed field is null.",
    "wrong_type": "A field is of the wrong JSON type.",
    "empty_text": "A text is empty or blank.",
    "empty_label": "A label is empty or blank.",
    "label_too_long": "A label is longer than the limit: columns may be swapped.",
    "label_is_list": "A list of labels under `label`.",
    "label_repeated": "One label stands twice in a row.",
    "label_types_mixed": "Labels of several JSON types in one set.",
    "label_not_number": "Regression needs a number.",
    "length_mismatch": "Two lists of a row that belong together differ in length.",
    "unknown_tag": "A tag that is not O, B-… or I-….",
    "empty_token": "A token without a visible character.",
    "bad_span": "A span that does not lie inside its text.",
    "span_text_differs": "A span and the text given for it differ.",
    "same_span": "Head and tail are the same span.",
    "overlapping_entities": "Two entities of a row overlap.",
    "answer_not_in_context": "An answer does not stand where its start says.",
    "bad_answer": "The answer is not the index of a choice.",
    "too_few_choices": "Fewer than two choices.",
    "duplicate_choice": "The same choice stands twice.",
    "bad_role": "A role that is not system, user, assistant or tool.",
    "bad_turns": "The turns of a dialogue come in an order that cannot be learned from.",
    "split_value": "A value of the split column is not train, validation or test.",
    # the set as a whole
    "single_class": "Classification needs two labels at least.",
    "labels_like_rows": "As many labels as rows: columns may be swapped.",
    "too_many_labels": "More labels than the limit: columns may be swapped.",
    "constant_value": "The number to predict is the same in every row.",
    "no_entities": "No entity in the whole set.",
    "unseen_label": "A label of validation or test that train does not have.",
    "empty_split": "A split that must hold rows is empty.",
    # notices
    "columns_left_out": "Columns of a Parquet file that hold neither texts nor numbers nor lists.",
    "classes_named": "Class numbers of a Parquet file were replaced by the names that it gives.",
    "read_as": "The content is of another format than the name says, and was read as what it is.",
    "converted_encoding": "UTF-16 or UTF-32 was converted to UTF-8.",
    "converted_line_ends": "Bare CR line ends were converted.",
    "delimiter_found": "The table is separated by another character than its name says.",
    "header_cleaned": "Column names were trimmed or put in lower case.",
    "loose_quotes": "Quotes inside quoted cells were not doubled; they were kept.",
    "empty_columns": "Columns without name and value were left out.",
    "empty_rows": "Rows of a table without any value were left out.",
    "fields_left_out": "Fields that the task does not use were left out.",
    "converted_form": "Rows in another known form were converted.",
    "label_not_text": "Labels were numbers or booleans and are kept as text.",
    "label_twins": "Labels that differ in case or blanks alone.",
    "rare_class": "A class with a single row.",
    "imbalance": "One class has many times the rows of another.",
    "duplicate_rows": "Exact copies of rows.",
    "near_duplicate_rows": "Rows that differ in case, blanks or punctuation alone.",
    "conflicting_labels": "The same input with different labels.",
    "leakage": "Inputs that stand in more than one split.",
    "small_split": "Splits with less than half of the rows that were asked for.",
    "row_too_long": "Rows over the length limit of a base model; they will be cut.",
    "tags_repaired": "I- tags that began an entity were read as B-.",
    "iob1_tags": "No B- tag at all: read as IOB1.",
    "labels_empty": "Rows with an empty list of labels: none fits them.",
    "unanswerable": "Questions without an answer.",
    "answers_always_first": "The right choice is always the first one.",
    "control_tokens": "Texts that spell a control token of chat models; they stay text.",
}


def printable(text: str) -> str:
    """A text with its characters that do not print (controls, surrogates, …) escaped.

    Args:
        text: Any text, valid Unicode or not.

    Returns:
        The same text where all of it prints.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """A short quotation of the user's data that is safe in a log, a terminal and a page.

    Characters that do not print (controls, direction overrides, surrogates) are escaped.

    Args:
        value: Any JSON value.

    Returns:
        At most ``SHOWN_CHARACTERS`` characters of it, in quotes when it is a text.
    """
    if not isinstance(value, str):
        value_text = (
            str(value) if isinstance(value, int | float | bool | None) else type(value).__name__
        )
        return value_text[:SHOWN_CHARACTERS]
    cut = value[:SHOWN_CHARACTERS]
    safe = printable(cut)
    return f'"{safe}…"' if len(value) > len(cut) else f'"{safe}"'


class Problem(BaseModel):
    """One reason why the upload is refused.

    Attributes:
        file: Which upload it is in: ``all``, ``train``, ``validation`` or ``test``.
        line: Physical line, from 1; None when the whole file is meant.
        column: Name of the field or column at fault.
        code: Stable, a key of ``CODES``.
        message: What is wrong, with the value.
        fix: What to do about it.
    """

    model_config = ConfigDict(frozen=True)

    file: str | None = None
    line: int | None = None
    column: str | None = None
    code: str
    message: str
    fix: str


class Notice(BaseModel):
    """Something the user should know although the upload is taken.

    Attributes:
        code: Stable, a key of ``CODES``.
        message: What was seen or done.
        fix: What to do about it, empty when nothing need be done.
        count: Number of rows (or labels, columns) that it concerns.
        lines: The first physical lines concerned.
        file: Which upload it is in; None when it is about the whole set.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    fix: str = ""
    count: int = 1
    lines: list[int] = []
    file: str | None = None


class ProblemList:
    """Counts every problem and keeps the first ``LISTED_PROBLEMS``."""

    def __init__(self) -> None:
        self.total = 0
        self.by_code: Counter[str] = Counter()
        self.listed: list[Problem] = []

    def add(
        self,
        code: str,
        message: str,
        fix: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: str | None = None,
    ) -> None:
        """Count a problem and list it while there is room.

        Args:
            code: A key of ``CODES``.
            message: What is wrong, with the value.
            fix: What to do about it.
            file: Which upload.
            line: Physical line, from 1.
            column: Field or column.
        """
        self.total += 1
        self.by_code[code] += 1
        if len(self.listed) < LISTED_PROBLEMS:
            column = None if column is None else printable(column[:COLUMN_CHARACTERS])
            self.listed.append(
                Problem(file=file, line=line, column=column, code=code, message=message, fix=fix)
            )


@dataclass
class _Gathered:
    """A notice while it is still being counted."""

    message: str
    fix: str
    level: Literal["warning", "note"]
    count: int = 0
    lines: list[int] = field(default_factory=list)


class NoticeList:
    """Gathers notices: one per code and file, with a count and its first lines."""

    def __init__(self) -> None:
        self._gathered: dict[tuple[str, str | None, str], _Gathered] = {}

    def add(
        self,
        code: str,
        message: str,
        fix: str = "",
        *,
        level: Literal["warning", "note"] = "warning",
        file: str | None = None,
        line: int | None = None,
        count: int = 1,
        about: str = "",
    ) -> None:
        """Count one more row under a notice; the first message stays.

        Args:
            code: A key of ``CODES``.
            message: What was seen.
            fix: What to do.
            level: ``warning`` is worth acting on, ``note`` is for information.
            file: Which upload.
            line: Physical line, from 1.
            count: How many rows this call stands for.
            about: What keeps two notices of one code apart, such as the base model.
        """
        gathered = self._gathered.setdefault((code, file, about), _Gathered(message, fix, level))
        gathered.count += count
        if line is not None and len(gathered.lines) < LISTED_LINES:
            gathered.lines.append(line)

    def drop(self, code: str) -> int:
        """Take back every notice of a code (another one says it better).

        Args:
            code: A key of ``CODES``.

        Returns:
            How many rows they had counted; 0 when there was none.
        """
        keys = [key for key in self._gathered if key[0] == code]
        return sum(self._gathered.pop(key).count for key in keys)

    def listed(self, level: Literal["warning", "note"]) -> list[Notice]:
        """The notices of one level in the order in which they came up.

        Args:
            level: ``warning`` or ``note``.

        Returns:
            Finished notices; the message names count and lines where they help.
        """
        found = []
        for (code, file, _), g in self._gathered.items():
            if g.level != level:
                continue
            message = g.message
            if g.lines:
                more = ", …" if len(g.lines) == LISTED_LINES and g.count > LISTED_LINES else ""
                noun = "line" if len(g.lines) == 1 else "lines"
                message += f" ({noun} {', '.join(map(str, g.lines))}{more}; {g.count} in all)"
            found.append(
                Notice(
                    code=code, message=message, fix=g.fix, count=g.count, lines=g.lines, file=file
                )
            )
        return found
