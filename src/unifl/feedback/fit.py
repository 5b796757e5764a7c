"""Fit a reward network to preferences (Bradley-Terry).

Used by reward models of every axis: r learns that the preferred picture of a pair scores higher, with
L = -E log sigmoid(r(c, x_win) - r(c, x_lose)) (UniFL, arXiv 2404.05595, equation 2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.data import Pair, PreferencePairs
from unifl.errors import UserError
from unifl.losses.preference import bradley_terry
from unifl.randomness import row_order


@dataclass(kw_only=True)
class FitConfig:
    """How a reward network is fitted."""

    steps: int = 500
    """Optimiser steps."""
    batch_size: int = 64
    """Pairs per step."""
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
    held_out: float = 0.1
    """Share of pairs kept back to measure accuracy, in (0, 1)."""
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


def fit_reward(
    network: nn.Module,
    pairs: PreferencePairs,
    *,
    config: FitConfig,
    progress: Callable[[FitRow], None] | None = None,
) -> FitResult:
    """Train `network(images, prompts) -> (b,)` in place and leave it in eval mode.

    Args:
        network: Its parameters with `requires_grad` are trained; pictures go to the device they are on.
        pairs: All pairs, noisy labels included.
        config: Settings.
        progress: Called with every measurement.

    Raises:
        UserError: Settings out of range, too few pairs to keep some back, or nothing to train.
    """
    _check(config, pairs)
    order = [row_order(len(pairs), config.seed, "fit/split", row) for row in range(len(pairs))]
    n_held_out = max(1, round(config.held_out * len(pairs)))
    held_out, kept = order[:n_held_out], order[n_held_out:]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("the reward network has no trainable parameter; unfreeze some before fitting it")
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))

    history = [FitRow(0, math.nan, *_measure(network, pairs, held_out, config.batch_size))]
    best, weights, recent = history[0], copy.deepcopy(network.state_dict()), []
    for step in range(1, config.steps + 1):
        first = (step - 1) * config.batch_size
        rows = [row_order(len(kept), config.seed, "fit", first + n) for n in range(config.batch_size)]
        network.train()
        loss = preference_loss(network, [pairs[kept[row]] for row in rows], label_noise=config.label_noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        recent.append(float(loss.detach()))
        if step % config.evaluate_every == 0 or step == config.steps:
            measured = _measure(network, pairs, held_out, config.batch_size)
            history.append(FitRow(step, sum(recent) / len(recent), *measured))
            recent = []
            if not config.keep_best or history[-1].held_out_loss <= best.held_out_loss:
                best, weights = history[-1], copy.deepcopy(network.state_dict())
            if progress is not None:
                progress(history[-1])
    network.load_state_dict(weights)
    network.eval()
    return FitResult(history, best, held_out)


def preference_loss(
    network: nn.Module, pairs: Sequence[Pair], *, label_noise: float = 0.0
) -> Float[Tensor, ""]:
    """Mean Bradley-Terry loss of some pairs; both pictures of all pairs go through the network together.

    With label noise e it is the expectation over labels that are flipped with probability e:
    (1 - e) L(win, lose) + e L(lose, win).
    """
    win, lose = _scores(network, pairs)
    loss = bradley_terry(win, lose)
    if label_noise > 0:
        loss = (1 - label_noise) * loss + label_noise * bradley_terry(lose, win)
    return loss.mean()


def _scores(network: nn.Module, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    device = next(network.parameters()).device
    images = torch.stack([pair.win for pair in pairs] + [pair.lose for pair in pairs]).to(device)
    scores = network(images, [pair.prompt for pair in pairs] * 2).float()
    win, lose = scores.chunk(2)
    return win, lose


@torch.no_grad()
def _measure(
    network: nn.Module, pairs: PreferencePairs, rows: list[int], batch_size: int
) -> tuple[float, float]:
    """Loss and accuracy (a tie counts half) on held-out rows."""
    network.eval()
    losses, right = [], []
    for start in range(0, len(rows), batch_size):
        win, lose = _scores(network, [pairs[row] for row in rows[start : start + batch_size]])
        losses.append(bradley_terry(win, lose))
        right.append((win > lose).float() + 0.5 * (win == lose).float())
    return float(torch.cat(losses).mean()), float(torch.cat(right).mean())


def _rate(step: int, config: FitConfig) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))


def _check(config: FitConfig, pairs: PreferencePairs) -> None:
    if config.steps < 1 or config.batch_size < 1 or config.evaluate_every < 1:
        raise UserError("steps, batch_size and evaluate_every of a reward fit must be at least 1")
    if not 0 <= config.label_noise < 0.5:
        raise UserError(f"label_noise is {config.label_noise}; it must be at least 0 and below 0.5")
    if not 0 < config.held_out < 1 or len(pairs) < 2:
        raise UserError(
            f"cannot keep back a share of {config.held_out} of {len(pairs)} pairs; use more pairs"
        )
    if round(config.held_out * len(pairs)) >= len(pairs):
        raise UserError(f"held_out={config.held_out} leaves no pair to train on; lower it")
