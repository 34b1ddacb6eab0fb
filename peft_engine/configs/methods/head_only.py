"""Options of training the head alone."""

from typing import Literal

from peft_engine.configs.model import Config


class HeadOnlyConfig(Config):
    """Only the task head learns, on features of the frozen base: the floor of every method."""

    type: Literal["head-only"] = "head-only"
