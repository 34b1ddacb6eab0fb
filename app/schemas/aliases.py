"""Bodies and answers about aliases."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.shared import MAX_REFERENCE_CHARS, Asked, Moment, Name, Sent, Text
from core.states import AliasAction

_EXPECTED = (
    "Move only if the alias points to this adapter now (id, name or `name@version`), else 409 "
    "`alias_moved`; null: only if there is no such alias yet. Left out: whatever it points to."
)


class GateAsked(Asked):
    """Move only if the new adapter is not worse than the present one on the same test rows."""

    metric: Text | None = Field(
        None,
        max_length=64,
        description="null: the metric by which the best step of both was chosen.",
        examples=["accuracy"],
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="null: refused only when shown to be worse (the whole 95 % interval of the "
        "difference lies on the worse side of 0). A number, in the metric's unit: refused unless "
        "shown to be at most so much worse (the whole interval lies above `-max_drop`).",
    )


class AliasPut(Asked):
    """Where an alias shall point."""

    adapter_id: Text = Field(
        min_length=1,
        max_length=MAX_REFERENCE_CHARS,
        description="Id, name (its newest version now), `name@version`, or another alias (where "
        "that points now).",
        examples=["support-intents@3"],
    )
    expected_adapter_id: Text | None = Field(
        None, max_length=MAX_REFERENCE_CHARS, description=_EXPECTED
    )
    gate: GateAsked | None = Field(
        None, description="null: moved without a test. A new alias has nothing to be compared with."
    )


class AliasRollback(Asked):
    """How far back an alias shall go."""

    revision: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="A revision of the history; null: where the alias pointed before.",
    )
    expected_adapter_id: Text | None = Field(
        None, max_length=MAX_REFERENCE_CHARS, description=_EXPECTED
    )


class AliasAnswer(Sent):
    """A name that points to an adapter."""

    id: str = Field(examples=["als_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["alias"] = "alias"
    name: Name
    adapter_id: str = Field(description="The adapter that answers for it now.")
    adapter: str = Field(description="The same as `name@version`.", examples=["support-intents@3"])
    adapter_digest: str
    revision: int = Field(description="How many times the alias was moved, deletions included.")
    created_at: Moment
    updated_at: Moment


class AliasMoveAnswer(Sent):
    """One move of an alias."""

    revision: int
    action: AliasAction
    adapter_id: str | None = Field(None, description="null: the alias was deleted.")
    adapter: str | None = Field(None, description="`name@version`.")
    adapter_deleted: bool = Field(False, description="The adapter has been deleted since.")
    previous_adapter_id: str | None = None
    restored_revision: int | None = Field(
        None, description="The revision that a rollback went back to."
    )
    gate: dict[str, Any] | None = Field(None, description="What the gate found, if there was one.")
    created_at: Moment


class AliasHistory(AliasAnswer):
    """An alias with its moves, newest first."""

    history: list[AliasMoveAnswer]
    history_has_more: bool = Field(description="Whether there are older moves: `?before=`.")
