"""Names of class numbers, where a Parquet file of Hugging Face ``datasets`` gives them.

It holds numbers under ``label``, or lists of them under ``tags``, and in the metadata of its
schema ``{"info": {"features": {"label": {"names": […], "_type": "ClassLabel"}}}}``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from peft_engine.records.options import Limits
from peft_engine.records.strict_json import Refused, StrictDecoder

ClassNames = Mapping[str, Sequence[str]]
"""``{column: names by number}``"""

_KEY = b"huggingface"
_MOST_BYTES = 4 * 2**20
# How the library writes no label, as in the test splits of its benchmarks.
_NONE = -1


def find_class_names(metadata: Mapping[bytes, bytes] | None, limits: Limits) -> ClassNames:
    """Read the names of all columns that have some.

    Args:
        metadata: Of the file's schema.
        limits: Bounds.

    Returns:
        The names; empty where there are none, or what stands there is of another shape or no
        JSON that a row might be.
    """
    text = (metadata or {}).get(_KEY, b"")
    if not text or len(text) > _MOST_BYTES:
        return {}
    try:
        features = StrictDecoder(limits).record(text.decode())["info"]["features"]
    except (Refused, UnicodeDecodeError, KeyError, TypeError):
        return {}
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        names = _names_of(feature)
        if names is not None and len(names) <= limits.max_labels:
            found[column] = names
    return found


def _names_of(feature: Any) -> list[str] | None:
    """Names of a class, or of classes in a list (``Sequence``, ``List``, or a list of one)."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    elif isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def name_classes(row: dict[str, Any], classes: ClassNames) -> dict[str, Any]:
    """Put names in place of numbers.

    Args:
        row: A row; it is not changed.
        classes: The names.

    Returns:
        The row with names; -1 is no label, and a number without a name stays.
    """
    named = {
        column: _named(row[column], names) for column, names in classes.items() if column in row
    }
    return row | named


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value == _NONE:
        return None
    return names[value] if 0 <= value < len(names) else value
