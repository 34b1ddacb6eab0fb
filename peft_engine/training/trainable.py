"""The parameters of one job: made from the seed, trained, frozen into a delta at the end."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec, Manifest
from peft_engine.configs.methods import MethodConfig
from peft_engine.delta import HEAD, Delta, tensor_name
from peft_engine.methods.table import METHODS
from peft_engine.parts.dropout import Dropout
from peft_engine.parts.rows import check_rows
from peft_engine.parts.sites import split_path
from peft_engine.parts.stacks import part_read
from peft_engine.plan import Actor
from peft_engine.tasks.protocol import Head


@dataclass(frozen=True)
class ParameterGroup:
    """Tensors that the optimizer treats alike.

    Attributes:
        names: Full names.
        learning_rate: Peak rate.
        weight_decay: Decoupled decay.
    """

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Trainable:
    """All tensors of a job's delta, on the device of the base.

    Attributes:
        tensors: The trained ones: fp32 leaves by full name.
        fixed: Those that are chosen before the first step and never trained, such as indices.
        methods: The methods.
        head_spec: Shape of the head, if the task has one.
        labels: Class names, if the task has them.
        dropout: The job's own generator.
        parent_digest: Digest of the delta that the values were taken from, if they were.
    """

    tensors: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    methods: tuple[MethodConfig, ...]
    head_spec: AnyHeadSpec | None
    labels: tuple[str, ...] | None
    dropout: torch.Generator
    parent_digest: str | None = None

    @property
    def parameters(self) -> int:
        """Values that are trained, the head included."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def head_parameters(self) -> int:
        """Those of the head."""
        own = self.tensors.items()
        return sum(tensor.numel() for name, tensor in own if name.startswith(f"{HEAD}:"))

    def actor(self, *, training: bool) -> Actor:
        """The tensors as they act on rows.

        Args:
            training: Whether dropout is drawn.

        Returns:
            An actor over the very tensors that the optimizer changes.
        """
        sites: dict[str, dict[str, dict[str, Tensor]]] = {}
        for full_name, tensor in (*self.tensors.items(), *self.fixed.items()):
            path, _, rest = full_name.partition(":")
            if path != HEAD:
                method, _, name = rest.partition(".")
                sites.setdefault(path, {}).setdefault(method, {})[name] = tensor
        dropout: dict[str, Dropout] = {
            config.type: Dropout(probability, self.dropout)
            for config in self.methods
            if training and (probability := getattr(config, "dropout", 0.0)) > 0
        }
        return Actor({config.type: config for config in self.methods}, sites, dropout)

    def head(self) -> Head | None:
        """The task head over the very tensors that the optimizer changes.

        Returns:
            The head; None for a task without one.
        """
        if self.head_spec is None:
            return None
        prefix = f"{HEAD}:"
        own = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        return Head(self.head_spec, own, self.labels or ())

    def copy(self) -> dict[str, Tensor]:
        """The values as they are now.

        Returns:
            Copies by full name.
        """
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def snapshot(self) -> "Trainable":
        """The same parameters, which later steps leave as they are now.

        Returns:
            Copies of the trained values; the fixed ones are shared.
        """
        return replace(self, tensors=self.copy())

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Put values back.

        Args:
            values: One tensor for each name.
        """
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(values[name])

    def freeze(self, base: Base, *, task: str, max_length: int) -> Delta:
        """The delta of the values as they are now.

        Args:
            base: The base that they belong to.
            task: Name of the task.
            max_length: Longest row in tokens.

        Returns:
            An immutable delta on the CPU.
        """
        manifest = Manifest(
            base_model=base.name,
            base_fingerprint=base.fingerprint,
            architecture=base.architecture,
            precision=base.precision,
            task=task,
            methods=self.methods,
            labels=self.labels,
            head=self.head_spec,
            template_digest=base.template_digest,
            max_length=max_length,
            parent_digest=self.parent_digest,
        )
        values = {**self.copy(), **self.fixed}
        return Delta.of({name: value.cpu() for name, value in values.items()}, manifest)


def create_trainable(
    base: Base,
    methods: Sequence[MethodConfig],
    *,
    seed: int,
    head: Head | None,
) -> Trainable:
    """Make the parameters of a job.

    Args:
        base: The base.
        methods: The methods.
        seed: Fixes the start values and dropout. Each site draws from a generator of its own, so
            that a site's start values do not depend on which other sites take part.
        head: The head to start from, on the CPU.

    Returns:
        The parameters, with zero effect on the base.

    Raises:
        ConfigError: A method finds no site, or one where the base cannot tell rows apart.
    """  # noqa: DOC502  raised below
    part = part_read(base.trunk, has_head=head is not None)
    values: dict[str, Tensor] = {}
    for config in methods:
        method = METHODS[config.type]
        sites = method.sites(part, config)
        check_rows(base.trunk, sites)
        for site in sites:
            generator = torch.Generator().manual_seed(_site_seed(seed, site.path, config.type))
            module = base.trunk.get_submodule(split_path(site.path)[0])
            for name, value in method.create(module, site, config, generator).items():
                values[tensor_name(site.path, config.type, name)] = value
    return _assemble(base, methods, values, seed=seed, head=head)


def adopt_trainable(base: Base, parent: Delta, *, seed: int, head: Head | None) -> Trainable:
    """Go on with the values of a delta; what it had chosen stays chosen.

    Args:
        base: The base that the delta belongs to.
        parent: The delta, checked against the base.
        seed: Fixes dropout.
        head: The head to go on with, on the CPU.

    Returns:
        The parameters, with the effect that the delta has.
    """
    own = {n: value for n, value in parent.tensors.items() if not n.startswith(f"{HEAD}:")}
    made = _assemble(base, parent.manifest.methods, own, seed=seed, head=head)
    return replace(made, parent_digest=parent.digest)


def _assemble(
    base: Base,
    methods: Sequence[MethodConfig],
    values: Mapping[str, Tensor],
    *,
    seed: int,
    head: Head | None,
) -> Trainable:
    """Deal tensors to those that are trained and those that are not, on the device of the base."""
    trained = {
        f"{config.type}.{name}"
        for config in methods
        for group in METHODS[config.type].groups(config)
        for name in group.names
    }
    tensors = {n: value for n, value in values.items() if n.partition(":")[2] in trained}
    fixed = {n: value for n, value in values.items() if n not in tensors}
    if head is not None:
        tensors |= {f"{HEAD}:{name}": value for name, value in head.tensors.items()}
    leaves = {
        name: value.to(base.device, copy=True).requires_grad_() for name, value in tensors.items()
    }
    return Trainable(
        leaves,
        {name: value.to(base.device, copy=True) for name, value in fixed.items()},
        tuple(methods),
        None if head is None else head.spec,
        None if head is None else head.labels,
        torch.Generator(base.device).manual_seed(seed),
    )


def parameter_groups(
    trainable: Trainable,
    *,
    learning_rates: Mapping[str, float],
    head_learning_rate: float,
    weight_decay: float,
) -> list[ParameterGroup]:
    """Sort the tensors into optimizer groups: decay for matrices only, the head at its own rate.

    Args:
        trainable: The parameters.
        learning_rates: Peak rate of each method by its name.
        head_learning_rate: Peak rate of the head.
        weight_decay: Decay where a method allows it.

    Returns:
        Groups that together name every tensor once.
    """
    groups: list[ParameterGroup] = []
    for config in trainable.methods:
        for own in METHODS[config.type].groups(config):
            endings = tuple(f":{config.type}.{name}" for name in own.names)
            names = tuple(name for name in trainable.tensors if name.endswith(endings))
            rate = learning_rates[config.type] * own.learning_rate_scale
            if names:
                groups.append(ParameterGroup(names, rate, weight_decay if own.decay else 0.0))
    head = tuple(name for name in trainable.tensors if name.startswith(f"{HEAD}:"))
    if head:
        groups.append(ParameterGroup(head, head_learning_rate, 0.0))
    return groups


def dropout_seed(seed: int, rank: int) -> int:
    """Seed of the dropout of a process beside the lead, whose seed is the job's own.

    Args:
        seed: The job's seed.
        rank: Number of the process.

    Returns:
        The seed.
    """
    return _site_seed(seed, f"rank {rank}", "dropout")


def _site_seed(seed: int, path: str, method: str) -> int:
    digest = hashlib.sha256(f"{seed}|{method}|{path}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
