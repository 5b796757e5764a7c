"""Settings of a reward fit, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass

from unifl.errors import UserError


@dataclass(kw_only=True)
class FitConfig:
    """How a reward network is fitted."""

    steps: int = 500
    """Optimiser steps."""
    batch_size: int = 64
    """Pairs per step, or rankings."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate; warm-up, then a cosine to 0."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Largest norm of a gradient."""
    label_noise: float = 0.0
    """Share of pairs assumed to be labelled the wrong way round, in [0, 0.5); keeps r from growing without end."""
    soft_labels: bool = False
    """Whether a pair of strength s counts as won with probability (1 + s) / 2, in place of 1."""
    margin: float = 0.0
    """By how much the winner of every pair is to be ahead; voting gives each pair its own."""
    theta: float | None = None
    """Above 1: ties follow Rao and Kupper (VideoReward takes 5). Null: a tie is won by either side with probability
    1/2."""
    contrastive: float = 0.0
    """Weight of SimCSE on features, an auxiliary loss; it needs a network with features and dropout."""
    temperature: float = 0.05
    """Of that loss."""
    clean_share: float = 0.25
    """On noisy latents: share of pairs that are shown without noise, in [0, 1]."""
    meta_step: float = 0.01
    """Of MetaRM, where samples of a policy are given: length of the step along the gradient of their spread."""
    held_out: float = 0.1
    """Share of pairs that are not learnt from and by which the fit is measured, in (0, 1)."""
    evaluate_every: int = 100
    """Steps between two measurements."""
    keep_best: bool = True
    """End with the weights of the best held-out loss instead of the last ones."""
    seed: int = 0
    """Of the split and of the order of pairs."""


@dataclass(frozen=True)
class FitRow:
    """One measurement: step, mean training loss since the last one, held-out loss and accuracy."""

    step: int
    loss: float
    held_out_loss: float
    held_out_accuracy: float


@dataclass(frozen=True)
class FitResult:
    """What a fit found.

    Attributes:
        history: Measurements in order; the first is before training.
        best: The row whose weights the network now has.
        held_out: Rows of the pairs that were kept back, for example to calibrate a hinge level on.
    """

    history: list[FitRow]
    best: FitRow
    held_out: list[int]


def check_fit(config: FitConfig) -> None:
    """Refuse settings out of range.

    Raises:
        UserError: The first of them.
    """
    if config.steps < 1 or config.batch_size < 1 or config.evaluate_every < 1:
        raise UserError("steps, batch_size and evaluate_every of a reward fit must be at least 1")
    if not config.learning_rate > 0:
        raise UserError(f"learning_rate is {config.learning_rate}; it must be above 0")
    if not 0 <= config.label_noise < 0.5:
        raise UserError(f"label_noise is {config.label_noise}; it must be at least 0 and below 0.5")
    if config.theta is not None and not config.theta > 1:
        raise UserError(
            f"theta is {config.theta}, which leaves no probability for ties; choose theta > 1, such as 5."
        )
    if config.margin < 0 or config.contrastive < 0 or config.meta_step < 0:
        raise UserError("margin, contrastive and meta_step of a reward fit must be at least 0")
    if not config.temperature > 0:
        raise UserError(f"temperature is {config.temperature}; it must be above 0")
    if not 0 <= config.clean_share <= 1:
        raise UserError(f"clean_share is {config.clean_share}; it must be in [0, 1]")
