"""What one kind of a foreign adapter becomes here: methods and tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from peft_engine.configs.methods import MethodConfig
from peft_engine.delta import tensor_name


@dataclass(frozen=True)
class Placed:
    """Tensors of a foreign file that belong to one module of the base.

    Attributes:
        path: The module in the trunk of the base.
        module: The same in the words of the file, for patterns of its configuration.
        tensors: By what the file calls them.
    """

    path: str
    module: str
    tensors: Mapping[str, Tensor]


@dataclass
class Part:
    """Methods, and their tensors by full name.

    Attributes:
        methods: In the order of the manifest.
        tensors: fp32 on the CPU, indices int32.
    """

    methods: list[MethodConfig] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def put(self, path: str, method: str, **tensors: Tensor) -> None:
        """Add tensors at a site.

        Args:
            path: Path of the site.
            method: Name of the method.
            **tensors: Tensors by short name.
        """
        for name, tensor in tensors.items():
            self.tensors[tensor_name(path, method, name)] = tensor.contiguous()
