"""One of several feedbacks in each training step, drawn anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.feedback.base import Feedback, Space
from unifl.randomness import Key


@dataclass(frozen=True)
class OneAtRandom:
    """One part per step; see `one_at_random`."""

    name: str
    space: Space
    differentiable: bool
    needs: frozenset[str]
    range: tuple[float, float] | None
    parts: tuple[tuple[Feedback, float], ...]
    """With their probabilities."""

    def at(self, key: Key) -> Feedback:
        """The part whose turn it is; the same for all samples and processes of a step."""
        draw = key.shared_uniform(f"one of {self.name}")
        for feedback, probability in self.parts:
            draw -= probability
            if draw < 0:
                return feedback
        return self.parts[-1][0]  # probabilities that add up to a little less than 1

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The mean over draws, where no step says whose turn it is: in an evaluation, inside another combination."""
        scores = [probability * feedback(images, prompts) for feedback, probability in self.parts]
        return torch.stack(scores).sum(0)


def one_at_random(
    parts: Mapping[str, Feedback], weights: Mapping[str, float], *, name: str = "one_of"
) -> OneAtRandom:
    """One of several feedbacks in each step, at a probability that goes with its weight.

    The step costs what one part costs, and on average climbs the weighted mean. Bring the parts to one scale first
    (`normalised`, `calibrated`). Methods that climb a reward by its gradient draw; elsewhere it is the mean.

    Args:
        parts: Feedbacks by name, all of one space.
        weights: By the same names, at least 0; a name with weight 0 is left out and never called.
        name: Name of the result; draws depend on it.

    Raises:
        UserError: Names that do not match, nothing left, a weight below 0, or pixels and latents mixed.
    """
    if parts.keys() != weights.keys():
        raise UserError(f"weights are given for {sorted(weights)} but the feedbacks are {sorted(parts)}")
    kept = {key: float(weight) for key, weight in weights.items() if weight != 0}
    if not kept or min(kept.values()) < 0:
        raise UserError(f"the weights of one_at_random are {dict(weights)}; give some above 0 and none below")
    members = [parts[key] for key in kept]
    if len({feedback.space for feedback in members}) > 1:
        raise UserError("one_at_random cannot mix feedback on pixels with feedback on latents")
    total = sum(kept.values())
    ends = [feedback.range for feedback in members if feedback.range is not None]
    return OneAtRandom(
        name=name,
        space=members[0].space,
        differentiable=all(feedback.differentiable for feedback in members),
        needs=frozenset().union(*(feedback.needs for feedback in members)),
        range=(min(low for low, _ in ends), max(high for _, high in ends))
        if len(ends) == len(members)
        else None,
        parts=tuple((parts[key], weight / total) for key, weight in kept.items()),
    )


def at_step(feedback: Feedback, key: Key) -> Feedback:
    """What a step climbs: of a `OneAtRandom` the part whose turn it is, and any other feedback as it is."""
    return feedback.at(key) if isinstance(feedback, OneAtRandom) else feedback
