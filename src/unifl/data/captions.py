"""Captions left out now and then, so that a model also learns to draw without one."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool
from torch import Tensor

from unifl.errors import UserError
from unifl.randomness import Key

_STEPS = 2**30
"""Probabilities are rounded to multiples of 2**-30."""


def dropped_captions(key: Key, probability: float, *, purpose: str = "caption dropout") -> Bool[Tensor, " b"]:
    """Which rows lose their caption, one draw per (seed, step, index).

    Classifier-free guidance needs a model that was also trained without captions (Ho and Salimans, arXiv 2207.12598,
    algorithm 1).

    Args:
        key: Address of the rows.
        probability: In [0, 1]; 0 drops none and 1 drops all.
        purpose: Other words give other draws.

    Raises:
        UserError: Not a probability.
    """
    if not 0 <= probability <= 1:
        raise UserError(f"the probability of dropping a caption is {probability}; it must be in [0, 1]")
    return key.integers(purpose, 0, _STEPS) < round(probability * _STEPS)


def drop_captions(
    prompts: Sequence[str], probability: float, key: Key, *, purpose: str = "caption dropout"
) -> list[str]:
    """The captions, with "" in place of those that are dropped.

    Args:
        prompts: b captions, one per row of the key.
        probability: In [0, 1].
        key: Address of the rows.
        purpose: Other words give other draws.

    Raises:
        UserError: Not a probability, or another number of captions than rows.
    """
    if len(prompts) != len(key):
        raise UserError(f"there are {len(prompts)} captions for {len(key)} rows; give one per row")
    dropped = dropped_captions(key, probability, purpose=purpose).tolist()
    return ["" if gone else prompt for prompt, gone in zip(prompts, dropped, strict=True)]
