"""Which pictures are shown beside each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unifl.errors import UserError
from unifl.randomness import permutation

Between = Literal["models", "samples"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture that can be shown.

    Attributes:
        prompt: What it was drawn for.
        file: Path from the arena's folder, or an absolute one.
        model: What drew it.
        seed: Of its noise.
    """

    prompt: str
    file: str
    model: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """A comparison that somebody will make.

    Attributes:
        first: Number of a candidate.
        second: Number of the other.
        gold: Known answer: 1 where the first is better, 0 where the second is; None for a real question.
    """

    first: int
    second: int
    gold: float | None = None


def plan_pairs(
    candidates: Sequence[Candidate], *, between: Between = "models", limit: int | None = None, seed: int = 0
) -> list[PairPlan]:
    """Pairs of pictures of one prompt, in an order that mixes prompts and models.

    Which picture of a pair is the first is as good as a coin: were it always the same model's, everybody's agreement
    that this model is worse would count as chance.

    Args:
        candidates: All pictures.
        between: models: pictures of different models, with the same seed where both have it. samples: any two pictures
            of a prompt.
        limit: At most so many pairs.
        seed: Of the order.

    Raises:
        UserError: No prompt has two such pictures.
    """
    by_prompt: dict[str, list[int]] = {}
    for number, candidate in enumerate(candidates):
        by_prompt.setdefault(candidate.prompt, []).append(number)
    pairs = [
        pair
        for numbers in by_prompt.values()
        for pair in itertools.combinations(numbers, 2)
        if between == "samples" or _compares_models(candidates[pair[0]], candidates[pair[1]])
    ]
    if not pairs:
        wanted = "of two models with the same seed" if between == "models" else "at all"
        raise UserError(
            f"no prompt has two pictures {wanted}; give pictures of the same prompts by several "
            "models, or compare samples"
        )
    order = permutation(len(pairs), seed, "arena pairs").tolist()
    turned = (permutation(len(pairs), seed, "arena sides") % 2).tolist()
    sides = [(pair[::-1] if turn else pair) for pair, turn in zip(pairs, turned, strict=True)]
    return [PairPlan(first=sides[at][0], second=sides[at][1]) for at in order[:limit]]


def _compares_models(one: Candidate, other: Candidate) -> bool:
    return one.model != other.model and one.seed == other.seed
