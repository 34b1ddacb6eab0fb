"""What a job takes over from the adapter that it continues from, as far as the wish alone tells."""

from collections.abc import Sequence

from peft_engine.configs.job import JobSpec
from peft_engine.configs.methods import MethodConfig
from peft_engine.errors import ConfigError


def inherit_methods(spec: JobSpec, methods: Sequence[MethodConfig]) -> JobSpec:
    """Give a job the methods of its parent.

    What the job names must be what the parent has: the shapes of the tensors depend on it. A field
    that the job leaves out is the parent's, also within a method: ``"lora"`` continues any LoRA.
    Their order is the job's, whose learning rate is that of the first.

    Args:
        spec: The job as asked.
        methods: The parent's methods.

    Returns:
        The job with exactly these methods.

    Raises:
        ConfigError: The job names another method, or another option of one (``parent_mismatch``).
    """  # noqa: DOC502  raised below
    if "method" in spec.model_fields_set:
        _refuse_others(spec.method, methods)
        names = [method.type for method in spec.method]
        methods = sorted(methods, key=lambda method: names.index(method.type))
    return spec.model_copy(update={"method": tuple(methods)})


def _refuse_others(asked: Sequence[MethodConfig], methods: Sequence[MethodConfig]) -> None:
    """Compare what was asked for, field by field.

    Raises:
        ConfigError: The parent has something else.
    """
    own = {method.type: method for method in methods}
    names = [method.type for method in asked]
    if sorted(names) != sorted(own):
        raise ConfigError(
            f"the job asks for {' + '.join(names)} and its parent is {' + '.join(own)}; "
            "leave method out to go on with the parent's",
            code="parent_mismatch",
            param="method",
        )
    for place, method in enumerate(asked):
        for field in sorted(method.model_fields_set):
            wanted, found = getattr(method, field), getattr(own[method.type], field)
            if wanted not in (found, "auto"):
                raise ConfigError(
                    f"the job asks for {method.type} with {field} {wanted!r} and its parent has "
                    f"{found!r}; leave it out to go on with the parent's",
                    code="parent_mismatch",
                    param=f"method.{place}.{field}",
                )
