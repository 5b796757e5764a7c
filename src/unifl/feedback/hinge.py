"""Hinge levels: how much of each quality is enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data import PreferencePairs
from unifl.errors import UserError
from unifl.feedback.base import Feedback


@torch.no_grad()
def calibrate_level(
    feedback: Feedback, preferred: Iterable[tuple[Float[Tensor, "b 3 h w"], Sequence[str]]]
) -> float:
    """The mean score of pictures that people preferred: the level alpha_d of UniFL's hinge.

    Args:
        feedback: The reward of one axis.
        preferred: Batches of (images in [0, 1], prompts), best of a validation set that the reward was not
            trained on; the paper takes 5,000 pairs.

    Returns:
        The level, on the scale of this very reward: it means nothing for another one.

    Raises:
        UserError: No picture, or a score that is not finite.

    Reference:
        UniFL, arXiv 2404.05595, sections 4.2 and 5.3.
    """
    total, count = 0.0, 0
    for images, prompts in preferred:
        scores = feedback(images, prompts)
        total += float(scores.double().sum())
        count += len(scores)
    if count == 0:
        raise UserError(f"no preferred pictures to calibrate {feedback.name!r} with")
    level = total / count
    if not torch.isfinite(torch.tensor(level)):
        raise UserError(f"the feedback {feedback.name!r} gave a score that is not finite; check its weights")
    return level


def preferred_batches(
    pairs: PreferencePairs, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> Iterator[tuple[Float[Tensor, "b 3 h w"], list[str]]]:
    """The preferred picture of every pair, in batches, for `calibrate_level`."""
    for start in range(0, len(pairs), batch_size):
        some = [pairs[row] for row in range(start, min(start + batch_size, len(pairs)))]
        yield torch.stack([pair.win for pair in some]).to(device), [pair.prompt for pair in some]
