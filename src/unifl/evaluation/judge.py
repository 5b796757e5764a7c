"""What a judge is: a network that reads a picture and says how much of the prompt it shows, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError

JUDGE_KEYS = (
    "alignment",  # 1 if every attribute and relation is read right, else 0
    "alignment_fraction",  # share of them that is read right
    "structure",
    "style",  # 1 if the named style is recognised, else 0
    "color",
    "layout",
    "lighting",
    "detail",
    "quality",  # mean of the four before it
)


@runtime_checkable
class Judge(Protocol):
    """Scores and features of pictures ``(b, 3, h, w)`` in [0, 1].

    Scores are ``(b,)`` per key, in [0, 1], higher is better; ``nan`` where a score does not apply to a
    prompt. Features are ``(b, d)`` with d <= 64, for distances and diversity.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores by key (``JUDGE_KEYS``), each ``(b,)``."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Features ``(b, d)``."""
        ...


def read_scores(judge: Judge, images: Tensor, prompts: Sequence[str]) -> dict[str, Float[np.ndarray, "b"]]:
    """A judge's scores of a batch, float64, checked: after the first batch and not after all have been drawn.

    Raises:
        UserError: A score is missing, is not one number per picture, or is infinite.
    """
    given = judge(images, prompts)
    missing = [key for key in JUDGE_KEYS if key not in given]
    if missing:
        raise UserError(f"the judge gave no {', '.join(missing)}; it must give {', '.join(JUDGE_KEYS)}")
    scores = {name: torch.as_tensor(values).double().cpu().numpy() for name, values in given.items()}
    for name, values in scores.items():
        if values.shape != (len(prompts),):
            raise UserError(
                f"the judge gave {name} of shape {values.shape} for {len(prompts)} pictures; "
                "it must give one number per picture"
            )
        if np.isinf(values).any():
            raise UserError(f"the judge gave infinite values of {name}; check the pictures")
    return scores


def read_features(judge: Judge, images: Tensor) -> Float[np.ndarray, "b d"]:
    """A judge's features of a batch, float64, checked as in `read_scores`.

    Raises:
        UserError: They are not one row per picture, or not finite.
    """
    features = judge.features(images).double().cpu().numpy()
    if features.ndim != 2 or len(features) != len(images):
        raise UserError(
            f"the judge gave features of shape {features.shape} for {len(images)} pictures; "
            "it must give one row per picture"
        )
    if not np.isfinite(features).all():
        raise UserError("the judge gave features that are not finite; check the pictures")
    return features
