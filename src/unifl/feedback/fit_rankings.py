"""Fit a reward network to whole rankings (Plackett and Luce), where people ordered more than two pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.fit import Pairs, measure_pairs
from unifl.feedback.fit_config import FitConfig, FitResult, check_fit
from unifl.feedback.fit_loop import Watch, run_fit
from unifl.losses.reward_modelling import plackett_luce
from unifl.randomness import row_order


@dataclass(frozen=True)
class Ranked:
    """Pictures of one prompt, the best first.

    Attributes:
        prompt: What they show.
        images: At least two.
    """

    prompt: str
    images: Float[Tensor, "k c h w"]


def fit_rankings(
    network: nn.Module,
    rankings: Sequence[Ranked] | Callable[[int], Ranked],
    number: int,
    held_out: Pairs,
    *,
    config: FitConfig,
    spread: Callable[[int], Float[Tensor, ""]] | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """Train `network(images, prompts) -> (b,)` in place and leave it in eval mode.

    Args:
        network: Its parameters with `requires_grad` are trained.
        rankings: By number.
        number: How many.
        held_out: Pairs of other prompts, by which it is measured.
        config: Settings; those of labels, ties and margins are for pairs, and must be left alone.
        spread: For MetaRM; see `run_fit`.
        watch: Who looks on.

    Raises:
        UserError: Settings of pairs, no ranking, or nothing to train.
    """
    check_fit(config)
    check_for_rankings(config)
    if not number:
        raise UserError("there are no rankings to train on; every comparison of these prompts is a tie")
    read = rankings if callable(rankings) else rankings.__getitem__

    def loss(step: int) -> Tensor:
        first = (step - 1) * config.batch_size
        numbers = range(first, first + config.batch_size)
        return ranking_loss(network, [read(row_order(number, config.seed, "fit", at)) for at in numbers])

    def measure() -> tuple[float, float]:
        return measure_pairs(network, held_out, range(len(held_out)), config.batch_size)

    history, best = run_fit(network, loss, measure, config=config, watch=watch or Watch(), spread=spread)
    return FitResult(history, best, list(range(len(held_out))))


def check_for_rankings(config: FitConfig) -> None:
    """Refuse settings that are for pairs.

    Raises:
        UserError: With their names.
    """
    set_for_pairs = [
        name
        for name in ("label_noise", "soft_labels", "margin", "theta", "contrastive")
        if getattr(config, name)
    ]
    if set_for_pairs:
        raise UserError(
            f"{', '.join(set_for_pairs)} of a fit are for pairs, not for rankings; leave them out"
        )


def ranking_loss(network: nn.Module, some: Sequence[Ranked]) -> Float[Tensor, ""]:
    """Mean loss of rankings of any lengths; all pictures go through the network together."""
    device = next(network.parameters()).device
    lengths = [len(one.images) for one in some]
    prompts = [one.prompt for one in some for _ in range(len(one.images))]
    scores = network(torch.cat([one.images for one in some]).to(device), prompts).float()
    padded = nn.utils.rnn.pad_sequence(list(scores.split(lengths)), batch_first=True)
    return plackett_luce(padded, torch.tensor(lengths, device=device)).mean()
