"""Knobs of the training loop. ``auto`` is resolved in ``peft_engine.training.resolve``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from peft_engine.configs.model import Auto, Config

Epochs = Annotated[float, Field(gt=0, le=1000)]
BatchRows = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, le=1)]
LengthTokens = Annotated[int, Field(ge=8, le=131_072)]
ClassName = Annotated[str, Field(min_length=1, max_length=512)]
ClassWeight = Annotated[float, Field(gt=0, le=1e6)]
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
GenerateRows = Annotated[int, Field(ge=0, le=100_000)]

MetricName = Literal[
    "loss",
    "accuracy",
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "mcc",
    "ece",
    "subset_accuracy",
    "pearson",
    "spearman",
    "rmse",
    "mae",
    "r2",
    "precision",
    "recall",
    "f1",
    "exact_match",
    "perplexity",
    "token_accuracy",
    "bleu",
    "chrf",
    "rouge1",
    "rouge2",
    "rougeL",
]


LOWER_IS_BETTER = frozenset({"loss", "perplexity", "rmse", "mae", "ece"})
"""Of all other metrics more is better."""


class EarlyStoppingConfig(Config):
    """Stop when the validation metric no longer improves; `keep` says which step is published."""

    patience: Auto | Annotated[int, Field(ge=1, le=1000)] = Field(
        "auto",
        description="Evaluations without improvement; auto: 3 at a constant rate, and as many as "
        "the run has where the rate falls to 0, since its last steps gain most.",
    )
    min_delta: float = Field(0.0, ge=0, le=1e6, description="Smallest change that counts.")
    metric: Auto | MetricName = Field(
        "auto", description="`auto`: the task's own; see docs/tasks. It must be one of the task's."
    )


class AdversarialConfig(Config):
    """Attacks on the embeddings during training (Miyato et al. 2017; Madry et al. 2018)."""

    type: Literal["fgm", "pgd"] = Field(
        "fgm", description="`fgm`: one step to the edge; `pgd`: several smaller ones."
    )
    epsilon: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Furthest move of a row's embeddings, as a share of their norm.",
    )
    steps: int = Field(3, ge=1, le=100, description="Steps of `pgd`; refused with `fgm`.")
    step_size: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Length of a step of `pgd`, as a share of epsilon; refused with `fgm`.",
    )
    weight: float = Field(
        1.0, gt=0, le=100, description="The loss is (clean + weight · attacked) / (1 + weight)."
    )

    @model_validator(mode="after")
    def _steps_once(self) -> "AdversarialConfig":
        # Defaults pass: a stored job names every option.
        fields = type(self).model_fields
        for name in ("steps", "step_size"):
            if self.type == "fgm" and getattr(self, name) != fields[name].default:
                raise ValueError(f"fgm takes one step to the edge: leave {name} out, or take pgd")
        return self


class TrainingConfig(Config):
    """One training run. Every number is bounded; every ``auto`` is shown resolved in the job."""

    epochs: Auto | Epochs = Field(
        "auto", description="Passes over the training rows (above 0, at most 1000)."
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Stop after so many steps; no run is longer than `epochs` for it.",
    )
    batch_size: Auto | BatchRows = Field("auto", description="Rows in one forward (1 to 4096).")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="Forwards in one step.")
    devices: int = Field(
        1,
        ge=1,
        le=64,
        description="Devices of one machine that train the job together, each with its share of "
        "the rows of every batch; the result is that of one to rounding. No more than the worker "
        "gives a job (`TUNERY_DEVICES_PER_JOB`).",
    )
    learning_rate: Auto | Rate = Field("auto", description="Peak learning rate of the delta.")
    head_learning_rate: Auto | Rate = Field("auto", description="Peak rate of the task head.")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw",
        description="torch.optim's AdamW, or its SGD with a momentum of 0.9. Rates at `auto` are "
        "AdamW's: give `sgd` rates of its own.",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Course of the learning rate after the warm-up."
    )
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: Auto | Decay = Field(
        "auto", description="Decay of matrices: decoupled, with `sgd` an L2 penalty."
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, le=1e6, description="Gradients are clipped to this norm; null: never."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Mass spread over all classes.")
    class_weights: Literal["balanced"] | dict[ClassName, ClassWeight] | None = Field(
        None,
        max_length=10_000,
        description="How much a row of each class counts in the loss: `balanced` evens out their "
        "numbers; classes that a mapping does not name count 1.",
    )
    adversarial: AdversarialConfig | None = Field(
        None, description="null: no attacks. With it the test report holds `robustness`."
    )
    max_length: Auto | LengthTokens = Field(
        "auto", description="Longest row in tokens; longer rows are cut and counted."
    )
    packing: Auto | bool = Field(
        "auto",
        description="Give the base the rows of a batch as one row without padding, each common "
        "beginning of rows once; the same result in less time. `auto`: where it was measured to "
        "pay; `true`: or refuse the job.",
    )
    precision: Auto | Literal["fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the frozen base; the delta itself is always fp32."
    )
    reuse_frozen_layers: Auto | bool = Field(
        "auto",
        description="Compute what enters the lowest trained layer once for each row and keep it. "
        "`auto`: where it is possible, fits into 1 GiB and rows are seen more than once; `true`: "
        "or refuse the job.",
    )
    gradient_checkpointing: Auto | bool = Field(
        "auto",
        description="Keep only what enters each layer and compute the layer again in the backward "
        "pass: less memory, about a third more time, the same result. `auto`: where a step's "
        "activations are estimated above 8 GiB.",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Fixes order, dropout and start values.")
    eval_every_steps: Auto | Steps = Field("auto", description="Steps between two evaluations.")
    eval_generate_rows: int = Field(
        100,
        ge=0,
        le=100_000,
        description="Rows of the test split answered in full for BLEU, chrF, ROUGE and exact "
        "match; 0: none.",
    )
    validation_generate_rows: Auto | GenerateRows = Field(
        "auto",
        description="The same of the validation split, at every evaluation. `auto`: none, or 32 "
        "when the metric that decides is one of texts.",
    )
    keep: Auto | Literal["best", "one_se", "last"] = Field(
        "auto",
        description="Which step is published: the `best` on validation; by `one_se` the latest "
        "that is within one standard error of the best; or the `last`, which is never stopped "
        "early. `auto`: one_se where the learning rate falls to 0 and more of the metric is "
        "better, else best; last with fewer than 16 validation rows, which choose by chance.",
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        EarlyStoppingConfig(), description="null: train to the end and keep as `keep` says."
    )
