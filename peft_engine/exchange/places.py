"""Module names of foreign files and paths of the trunk: the same modules under different roots."""

from peft_engine.bases.base import Base
from peft_engine.parts.stacks import TwoStacks


def module_prefixes(base: Base) -> tuple[str, ...]:
    """What may stand before a path of the trunk in the names of a foreign file.

    Args:
        base: The base.

    Returns:
        Prefixes with their dot, the empty one last: files of the bare trunk, of the model with a
        language head, and of a model with a head of its task.
    """
    own = str(getattr(base.model, "base_model_prefix", ""))
    # T5 and BART with a head of a task hold the whole model under `transformer` or `model`.
    names = {own, "model", "transformer"} if isinstance(base.trunk, TwoStacks) else {own}
    return (*sorted(f"{name}." for name in names if name), "")


def locate(base: Base, module: str) -> str | None:
    """Path of a foreign module in the trunk.

    Args:
        base: The base.
        module: Its name in the file.

    Returns:
        The path; None when the trunk has no such module.
    """
    known = {name for name, _ in base.trunk.named_modules()}
    for prefix in module_prefixes(base):
        path = module.removeprefix(prefix)
        if module.startswith(prefix) and path in known:
            return path
    return None


def export_prefix(base: Base, *, has_head: bool) -> str:
    """What stands before a path of the trunk in the model that transformers builds for a task.

    Args:
        base: The base.
        has_head: Whether the task has a head of its own.

    Returns:
        The prefix with its dot, or nothing.
    """
    own = str(getattr(base.model, "base_model_prefix", ""))
    if isinstance(base.trunk, TwoStacks):
        if has_head:
            return f"{own}."
        named = {id(module): name for name, module in base.model.named_modules()}
        return str(named[id(base.trunk.encoder)]).removesuffix("encoder")
    return f"{own}." if base.architecture == "causal" or has_head else ""
