"""The methods by name, and the fixed order in which several act at one site."""

from collections.abc import Mapping
from types import MappingProxyType

from peft_engine.methods.bitfit import Bitfit
from peft_engine.methods.bottleneck import Bottleneck
from peft_engine.methods.full import Full
from peft_engine.methods.head_only import HeadOnly
from peft_engine.methods.ia3 import Ia3
from peft_engine.methods.lora import Lora
from peft_engine.methods.mask import Mask
from peft_engine.methods.norm import Norm
from peft_engine.methods.prefix import Prefix
from peft_engine.methods.protocol import Method, Selector

_MASK = Mask()

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Lora(),
        "bottleneck": Bottleneck(),
        "bitfit": Bitfit(),
        "ia3": Ia3(),
        "norm": Norm(),
        "mask": _MASK,
        "prefix": Prefix(),
        "head-only": HeadOnly(),
        "full": Full(),
    }
)

SELECTORS: Mapping[str, Selector] = MappingProxyType({"mask": _MASK})
"""Methods that choose by the data where to act."""

ORDER: tuple[str, ...] = (
    "full",
    "mask",
    "lora",
    "ia3",
    "norm",
    "bitfit",
    "prefix",
    "bottleneck",
)
"""In which methods act at one site, before the base and after it. Never by the order in a job, so
that a combination means one thing only. Before the base ia3 scales what base, mask and lora all
read; after it come sparse, lora, ia3, gains, biases, bottleneck. A prefix has sites of its own."""
