"""Settings of a training run; the words are those of the diffusers examples where the meaning is the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from unifl.errors import UserError, nearest

LrScheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


@dataclass(kw_only=True)
class OptimizerConfig:
    """One optimiser of a method."""

    kind: str = "adamw"
    """A name from `unifl.training.optimizers.OPTIMIZERS`, or a dotted path "package.module:Class"."""

    learning_rate: float | None = None
    """Peak learning rate; None takes `TrainingConfig.learning_rate`."""

    lr_scheduler: LrScheduler | None = None
    """None takes `TrainingConfig.lr_scheduler`."""

    max_grad_norm: float | None = None
    """None takes `TrainingConfig.max_grad_norm`."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimiser, for example `weight_decay: 0.01`."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            UserError: A number that makes no sense.
        """
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            wanted = "above 0, or null to take the run's"
            _require(f"{name} of an optimizer", value, value is None or value > 0, wanted)


@dataclass(kw_only=True)
class TrainingConfig:
    """How long, how fast and how watched a method trains."""

    max_train_steps: int = 1000
    """Training steps of the whole run; a resumed run counts the steps before it."""

    train_batch_size: int = 8
    """Rows per micro-batch on one process."""

    gradient_accumulation_steps: int = 1
    """Micro-batches per update on one process."""

    learning_rate: float = 1e-4
    """Peak learning rate of every optimiser that has none of its own."""

    lr_scheduler: LrScheduler = "constant"
    """Course of the learning rate, a name of `diffusers.optimization.get_scheduler`."""

    lr_warmup_steps: int = 0
    """Training steps over which learning rates rise linearly from 0."""

    optimizers: dict[str, OptimizerConfig] = field(default_factory=dict)
    """Optimisers by the name of the update; an update that is not named here gets AdamW."""

    max_grad_norm: float | None = 1.0
    """Gradients of an update are scaled down to this total L2 norm; None leaves them alone."""

    ema_decay: float | None = None
    """Decay of the moving average of the student's weights, which becomes the role "ema"; None keeps none."""

    mixed_precision: Literal["no", "bf16"] = "no"
    """Autocast of the networks; must agree with the generator, which does it. Weights stay as loaded."""

    seed: int = 0
    """Seed of every draw of the run."""

    checkpointing_steps: int = 500
    """Steps from one checkpoint to the next; the last step always writes one."""

    checkpoints_total_limit: int | None = 3
    """How many checkpoints are kept, the newest ones; None keeps all."""

    checkpoint_on_interrupt: bool = True
    """Ctrl-C finishes the step and writes a checkpoint; a second Ctrl-C stops at once."""

    preview_steps: int = 0
    """Steps from one set of preview pictures to the next; 0 makes none."""

    preview_prompts: list[str] = field(default_factory=list)
    """Prompts of the preview pictures, the same ones every time and with the same noise."""

    grad_norm_steps: int = 0
    """Steps between records of the gradient norm of each loss term (one more backward each); 0 makes none."""

    report_to: str | None = None
    """A tracker that accelerate knows (tensorboard, wandb, trackio, ...); metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            UserError: A number that makes no sense.
        """
        positive = (
            "max_train_steps",
            "train_batch_size",
            "gradient_accumulation_steps",
            "checkpointing_steps",
        )
        for name in positive:
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("lr_warmup_steps", "preview_steps", "grad_norm_steps"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        limit, norm, decay = self.checkpoints_total_limit, self.max_grad_norm, self.ema_decay
        _require("checkpoints_total_limit", limit, limit is None or limit >= 1, "at least 1, or null")
        _require("max_grad_norm", norm, norm is None or norm > 0, "above 0, or null")
        _require("ema_decay", decay, decay is None or 0 < decay < 1, "between 0 and 1, or null")

    def optimizer(self, update: str) -> OptimizerConfig:
        """The settings of one update's optimiser, with the run's values where it has none of its own."""
        own = self.optimizers.get(update, OptimizerConfig())
        return OptimizerConfig(
            kind=own.kind,
            learning_rate=self.learning_rate if own.learning_rate is None else own.learning_rate,
            lr_scheduler=self.lr_scheduler if own.lr_scheduler is None else own.lr_scheduler,
            max_grad_norm=self.max_grad_norm if own.max_grad_norm is None else own.max_grad_norm,
            kwargs=own.kwargs,
        )

    def check_updates(self, updates: Iterable[str]) -> None:
        """Check that `optimizers` names updates that the method has.

        Raises:
            UserError: It names another one.
        """
        known = tuple(updates)
        for name in self.optimizers:
            if name not in known:
                guess = nearest(name, known)
                hint = f"did you mean {guess!r}?" if guess else f"this method has: {', '.join(known)}"
                raise UserError(f"optimizers.{name} belongs to no update of this method; {hint}")


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}; it must be {wanted}")
