"""What is read off pictures beside the judge's scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.evaluation import score_images
from unifl.feedback.black_box import JpegSize
from unifl.metrics.saturation import mean_saturation
from unifl.metrics.spectrum import high_frequency_share
from unifl.world.assets import load_judge, load_rewards

Readings = Callable[[Tensor, list[str]], dict[str, Float[np.ndarray, " p"]]]
"""Pictures (p, 3, h, w) and their prompts to numbers by name."""


def of_feedback(images: Float[Tensor, "p 3 h w"], prompts: list[str]) -> dict[str, Float[np.ndarray, " p"]]:
    """The saturation of the colours, and what the packaged detail reward says."""
    return {
        "saturation": _array(mean_saturation(images)),
        "reward_detail": _rewards(images, prompts, "detail"),
    }


def of_distillation(
    images: Float[Tensor, "p 3 h w"], prompts: list[str]
) -> dict[str, Float[np.ndarray, " p"]]:
    """Rewards that were followed, the energy of high frequencies, and the size of the JPEG in kB."""
    return {
        "reward_detail": _rewards(images, prompts, "detail"),
        "reward_global": _rewards(images, prompts, "global"),
        "high_frequency": _array(high_frequency_share(images)),
        "jpeg": -_array(JpegSize()(images, prompts)),
    }


def of_preference(images: Float[Tensor, "p 3 h w"], prompts: list[str]) -> dict[str, Float[np.ndarray, " p"]]:
    """What the validation judge says of them all in all, and the energy of high frequencies."""
    judged = score_images(load_judge("validation"), images, prompts)
    return {
        "validation": judged.values["overall"][:, 0],
        "high_frequency": _array(high_frequency_share(images)),
    }


def _rewards(images: Tensor, prompts: list[str], axis: str) -> Float[np.ndarray, " p"]:
    with torch.no_grad():
        return _array(load_rewards()[axis](images, prompts))


def _array(values: Tensor) -> Float[np.ndarray, " p"]:
    return values.detach().cpu().numpy().astype(np.float64)
