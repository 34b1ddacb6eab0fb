from app.services.reports import as_told


def test_labels_are_told_by_how_common_they_are_whatever_the_database_kept() -> None:
    # Postgres keeps keys by length, then by their bytes
    counts = {"b": 1, "aa": 7, "late": 1, "arrived": 3}
    split = {"file": "train.jsonl", "label_counts": counts}
    told = as_told({"rows": 12, "label_counts": counts, "splits": {"train": split}})
    assert told is not None
    ordered = ["aa", "arrived", "b", "late"]
    assert list(told["label_counts"]) == ordered
    assert list(told["splits"]["train"]["label_counts"]) == ordered
    assert (told["rows"], told["splits"]["train"]["file"]) == (12, "train.jsonl")
    assert as_told({"problems": []}) == {"problems": []}
    assert as_told(None) is None
