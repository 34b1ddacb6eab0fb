"""Jobs that continue from an adapter: which one is meant, and whether the job fits it.

The engine has the last word, when base and parent are loaded: this is so that a job is refused at
once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from core.db import Session, adapters
from core.db.models import Adapter, Job
from core.errors import BadInput, NotFound
from peft_engine.configs import JobSpec, MethodConfig, inherit_methods

_METHODS: TypeAdapter[tuple[MethodConfig, ...]] = TypeAdapter(tuple[MethodConfig, ...])


def inherit(
    session: Session,
    tenant_id: str,
    spec: JobSpec,
    *,
    described: Sequence[Mapping[str, Any]],
) -> JobSpec:
    """Fill in what a job takes over from its parent.

    Args:
        session: A writing session: the parent cannot be deleted before the job is there.
        tenant_id: The owner of job and parent.
        spec: The job as asked.
        described: The job's base as live inference processes describe it; may be empty.

    Returns:
        The job with the parent's id, whatever reference was given, and the parent's methods; a job
        without a parent as it is.

    Raises:
        BadInput: The job is for another task or base than the parent's.

    ``NotFound`` goes through for a reference that means nothing, and the engine's ``ConfigError``
    for a method that is not the parent's.
    """
    if spec.parent_adapter_id is None:
        return spec
    parent = _hold_parent(session, tenant_id, spec.parent_adapter_id)
    _check_base(parent, spec, described)
    if spec.task not in (None, parent.task):
        raise BadInput(
            f"{parent.name}@{parent.version} is for {parent.task}, the job for {spec.task}",
            code="task_mismatch",
            param="task",
        )
    named = spec.model_copy(update={"parent_adapter_id": parent.id, "task": parent.task})
    return inherit_methods(named, _METHODS.validate_python(parent.methods))


def require_parent(session: Session, job: Job) -> None:
    """Refuse to run a job again whose parent is gone.

    Args:
        session: A writing session.
        job: A job of the caller.

    ``NotFound`` goes through when the parent was deleted.
    """
    reference = job.spec.get("parent_adapter_id")
    if reference is not None:
        _hold_parent(session, job.tenant_id, reference)


def _hold_parent(session: Session, tenant_id: str, reference: str) -> Adapter:
    """The adapter, kept from being deleted until the transaction ends.

    Raises:
        NotFound: There is none; names the job's field.
    """
    try:
        found = adapters.resolve(session, tenant_id, reference)
        return adapters.hold(session, tenant_id, found.id)
    except NotFound as error:
        raise NotFound(error.message, code=error.code, param="parent_adapter_id") from error


def _check_base(parent: Adapter, spec: JobSpec, described: Sequence[Mapping[str, Any]]) -> None:
    """Another name may be the same base; whether the same name still is, the loaded base tells.

    Raises:
        BadInput: It is another base.
    """
    same_weights = not spec.base.is_derived and any(
        base.get("fingerprint") == parent.base_fingerprint for base in described
    )
    if spec.base_name != parent.base_model and not same_weights:
        raise BadInput(
            f"{parent.name}@{parent.version} was trained on {parent.base_model} "
            f"({parent.base_fingerprint[:19]}…), the job is for {spec.base_name}",
            code="base_mismatch",
            param="base_model",
        )
