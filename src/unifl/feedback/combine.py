"""Feedback made of other feedback: weighted sums, limits, a common scale, targets, and ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.feedback.base import Feedback, Space

Caution = Literal["none", "least", "variance"]


@dataclass(frozen=True)
class _Combined:
    """What a combination declares follows from its parts."""

    name: str
    space: Space
    differentiable: bool
    needs: frozenset[str]
    range: tuple[float, float] | None


@dataclass(frozen=True)
class WeightedSum(_Combined):
    """sum_i w_i r_i; see `weighted_sum`."""

    parts: tuple[tuple[Feedback, float], ...]

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The weighted sum of the parts' scores."""
        first, *others = [weight * feedback(images, prompts) for feedback, weight in self.parts]
        return sum(others, start=first)


@dataclass(frozen=True)
class Affine(_Combined):
    """(r - shift) / scale, limited to `range` when `limited`; see `normalised` and `clipped`."""

    feedback: Feedback
    shift: float
    scale: float
    limited: bool

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The shifted, scaled and limited scores."""
        scores = (self.feedback(images, prompts) - self.shift) / self.scale
        if self.limited and self.range is not None:
            return scores.clamp(*self.range)
        return scores


@dataclass(frozen=True)
class Target(_Combined):
    """-|r - target|; see `towards`."""

    feedback: Feedback
    target: float

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """How near the scores are to the target, at most 0."""
        return -(self.feedback(images, prompts) - self.target).abs()


@dataclass(frozen=True)
class Ensemble(_Combined):
    """Several opinions as one; see `ensemble`."""

    parts: tuple[Feedback, ...]
    cautious: Caution
    penalty: float

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The mean, the least, or the mean minus the penalty times the variance of the parts' scores."""
        scores = self.scores(images, prompts)
        if self.cautious == "least":
            return scores.amin(0)
        if self.cautious == "variance":
            return scores.mean(0) - self.penalty * scores.var(0, correction=0)
        return scores.mean(0)

    def scores(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, "m b"]:
        """Of each of the m parts; their spread tells where they do not know."""
        return torch.stack([feedback(images, prompts) for feedback in self.parts])


def weighted_sum(
    parts: Mapping[str, Feedback], weights: Mapping[str, float], *, name: str = "sum"
) -> WeightedSum:
    """The weighted sum of several feedbacks.

    Args:
        parts: Feedbacks by name, all of one space.
        weights: Their weights by the same names; a name with weight 0 is left out and never called.
        name: Name of the result.

    Raises:
        UserError: Names that do not match, nothing left to sum, or pixels and latents mixed.
    """
    if parts.keys() != weights.keys():
        raise UserError(f"weights are given for {sorted(weights)} but the feedbacks are {sorted(parts)}")
    kept = tuple((parts[key], float(weight)) for key, weight in weights.items() if weight != 0)
    if not kept:
        raise UserError("a weighted sum needs a feedback whose weight is not 0")
    spaces = {feedback.space for feedback, _ in kept}
    if len(spaces) > 1:
        raise UserError("a weighted sum cannot mix feedback on pixels with feedback on latents")
    return WeightedSum(
        name=name,
        space=spaces.pop(),
        differentiable=all(feedback.differentiable for feedback, _ in kept),
        needs=frozenset().union(*(feedback.needs for feedback, _ in kept)),
        range=_sum_of_ranges(kept),
        parts=kept,
    )


def normalised(feedback: Feedback, *, mean: float, std: float) -> Affine:
    """(r - mean) / std, for feedbacks that should count alike.

    Raises:
        UserError: `std` is not positive.
    """
    if not std > 0:
        raise UserError(f"std of {feedback.name!r} is {std}; it must be positive")
    limits = feedback.range
    scaled = None if limits is None else ((limits[0] - mean) / std, (limits[1] - mean) / std)
    return _affine(feedback, shift=mean, scale=std, limits=scaled, limited=False)


def clipped(feedback: Feedback, *, low: float, high: float) -> Affine:
    """Scores limited to [low, high]; outside there is no gradient.

    Raises:
        UserError: The limits are not in order.
    """
    if not low < high:
        raise UserError(f"cannot clip {feedback.name!r} to [{low}, {high}]; low must be below high")
    return _affine(feedback, shift=0.0, scale=1.0, limits=(low, high), limited=True)


def towards(feedback: Feedback, target: float) -> Target:
    """How near scores are to a value that they should have, not pass: -|r - target|.

    Args:
        feedback: What is aimed at.
        target: The score that is best; others lose as much on either side.
    """
    limits = feedback.range
    worst = None if limits is None else -max(abs(end - target) for end in limits)
    return Target(
        name=feedback.name,
        space=feedback.space,
        differentiable=feedback.differentiable,
        needs=feedback.needs,
        range=None if worst is None else (worst, 0.0),
        feedback=feedback,
        target=target,
    )


def ensemble(
    parts: Mapping[str, Feedback], *, cautious: Caution = "none", penalty: float = 1.0, name: str = "ensemble"
) -> Ensemble:
    """Several feedbacks that were made to say the same, as one.

    Rewards that were fitted with several seeds differ in what they do not know, which is where a model that climbs one
    of them goes. Against that: the worst case, or a penalty on the variance (Coste et al., arXiv 2310.02743, sections
    3.2 and 3.3).

    Args:
        parts: Two or more, all of one space and one scale.
        cautious: none is the mean, least the smallest score of each picture, variance the mean less
            `penalty` times the variance.
        penalty: See above.
        name: Name of the result.

    Raises:
        UserError: Fewer than two parts, pixels and latents mixed, or a penalty that is not above 0.
    """
    if len(parts) < 2:
        raise UserError(f"an ensemble needs two or more feedbacks, got {len(parts)}")
    if len({feedback.space for feedback in parts.values()}) > 1:
        raise UserError("an ensemble cannot mix feedback on pixels with feedback on latents")
    if not penalty > 0:
        raise UserError(f"penalty is {penalty}; it must be above 0")
    members = tuple(parts.values())
    ends = [feedback.range for feedback in members if feedback.range is not None]
    # a penalty may lead below the smallest score
    known = len(ends) == len(members) and cautious != "variance"
    return Ensemble(
        name=name,
        space=members[0].space,
        differentiable=all(feedback.differentiable for feedback in members),
        needs=frozenset().union(*(feedback.needs for feedback in members)),
        range=(min(low for low, _ in ends), max(high for _, high in ends)) if known else None,
        parts=members,
        cautious=cautious,
        penalty=penalty,
    )


def _affine(
    feedback: Feedback, *, shift: float, scale: float, limits: tuple[float, float] | None, limited: bool
) -> Affine:
    return Affine(
        name=feedback.name,
        space=feedback.space,
        differentiable=feedback.differentiable,
        needs=feedback.needs,
        range=limits,
        feedback=feedback,
        shift=shift,
        scale=scale,
        limited=limited,
    )


def _sum_of_ranges(parts: tuple[tuple[Feedback, float], ...]) -> tuple[float, float] | None:
    low = high = 0.0
    for feedback, weight in parts:
        if feedback.range is None:
            return None
        ends = sorted(weight * end for end in feedback.range)
        low, high = low + ends[0], high + ends[1]
    return low, high
