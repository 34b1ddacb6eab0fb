import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BadInput
from core.settings import load_settings
from core.storage import checkpoint_key, dataset_key, delta_key, open_store, upload_key
from core.storage.keys import check_key


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "a//b", "a/", "./a", "a/./b"),
        *("a\\b", "a\x00b", "a\nb", "a b", ".hidden", "a/.part-1", "-x", "a:b", "ä", "a" * 256),
        *("C:/x", "%2e%2e/x", "~/x", "a?b", "a#b"),
    ],
)
def test_keys_that_lead_elsewhere_are_refused(key: str) -> None:
    with pytest.raises(BadInput, match="relative path of plain names") as caught:
        check_key(key)
    assert caught.value.code == "invalid_key"


@given(st.text(max_size=40))
def test_a_key_that_passes_stays_in_its_folder(key: str) -> None:
    try:
        check_key(key)
    except BadInput:
        return
    assert key
    assert all(part and not part.startswith(".") for part in key.split("/"))


def test_the_keys_of_every_kind_of_object_pass() -> None:
    digest = "sha256:" + "ab" * 32
    assert upload_key("ds_1", "all") == "uploads/ds_1/all"
    assert dataset_key("ds_1", "train") == "datasets/ds_1/train.jsonl"
    assert delta_key(digest) == f"deltas/{'ab' * 32}.safetensors"
    assert checkpoint_key("job_1", 2, 30) == "checkpoints/job_1/2-30.safetensors"


def test_a_name_from_outside_cannot_leave_its_folder() -> None:
    with pytest.raises(BadInput):
        dataset_key("ds_1", "../../train")


@pytest.mark.parametrize("url", ["ftp://x/y", "objects", "s3://", "file://", "file://host/x", ""])
def test_a_storage_that_does_not_exist_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="use file:///folder or s3://bucket/prefix"):
        open_store(load_settings(storage_url=url))
