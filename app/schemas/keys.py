"""Bodies and answers about API keys. The key itself is shown once and never stored."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from app.schemas.shared import Asked, Moment, Name, Sent

Scope = Literal["read", "write", "predict", "admin"]


def _in_future(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("must be in the future")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be before the year 10000 in UTC") from None


class KeyCreate(Asked):
    """What a new key may do and for how long."""

    name: Name = Field("key", examples=["ci"])
    scopes: tuple[Scope, ...] = Field(
        ("read", "write", "predict"),
        min_length=1,
        max_length=4,
        description="`read` looks, `write` creates and deletes, `predict` asks models, `admin` "
        "manages keys.",
    )
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_future)] | None = Field(
        None, description="null: never."
    )


class KeyAnswer(Sent):
    """A key without its secret part."""

    id: str
    object: Literal["key"] = "key"
    name: str
    prefix: str = Field(description="The first characters, to tell keys apart.")
    scopes: list[Scope]
    expires_at: Moment | None = None
    last_used_at: Moment | None = None
    revoked_at: Moment | None = None
    created_at: Moment


class NewKeyAnswer(KeyAnswer):
    """A key with its secret part, shown this once."""

    key: str = Field(description="Keep it: it cannot be shown again.", examples=["tk_…"])
