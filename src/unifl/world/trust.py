"""Can the judges be trusted?  The numbers of the docs page, measured on held-out scenes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.stats import spearmanr
from torch import Tensor

from unifl.feedback import Feedback
from unifl.world.annotated import SceneImages
from unifl.world.corruption import blur
from unifl.world.judges import WorldJudge
from unifl.world.reading import matches
from unifl.world.scenes import QUALITIES, Scene, sample_scenes

_SEED = 77


def judge_numbers(
    judge: WorldJudge, reencode: Callable[[Tensor], Tensor], *, number: int = 1000
) -> dict[str, float]:
    """Attribute accuracy, style accuracy, rank correlation per quality, and what damage costs.

    Args:
        reencode: the autoencoder's round trip.
    """
    data = SceneImages(sample_scenes(number, seed=_SEED, held_out=True))
    clean = _reading_numbers(judge, data.images, data.scenes)
    coded_images = torch.cat([reencode(part) for part in data.images.split(100)])
    coded = _reading_numbers(judge, coded_images, data.scenes)
    scores, coded_scores = judge(data.images, data.prompts), judge(coded_images, data.prompts)
    rng = torch.Generator().manual_seed(_SEED)
    damaged = {
        "noise_0.1": (data.images + 0.1 * torch.randn(data.images.shape, generator=rng)).clamp(0, 1),
        "blur_1.5px": blur(data.images, torch.full((len(data),), 1.5)),
        "gain_1.5": (1.5 * data.images).clamp(0, 1),
    }
    out = {**clean, **{f"{key}_reencoded": value for key, value in coded.items()}}
    for axis in QUALITIES:
        out[f"reencoding_cost_{axis}"] = float((scores[axis] - coded_scores[axis]).mean())
    for name, images in damaged.items():
        out[f"quality_change_{name}"] = float(
            (judge(images, data.prompts)["quality"] - scores["quality"]).mean()
        )
    return out


def _reading_numbers(judge: WorldJudge, images: Tensor, scenes: list[Scene]) -> dict[str, float]:
    readings = judge.read(images)
    answers = [answer for r, s in zip(readings, scenes, strict=True) for answer in matches(r, s.description)]
    style = [r.style == s.description.style for r, s in zip(readings, scenes, strict=True)]
    whole = [all(matches(r, s.description)) for r, s in zip(readings, scenes, strict=True)]
    out = {
        "attribute_accuracy": sum(answers) / len(answers),
        "alignment": sum(whole) / len(whole),
        "style_accuracy": sum(style) / len(style),
        "structure": sum(r.structure for r in readings) / len(readings),
    }
    for i, axis in enumerate(QUALITIES):
        truth, read = [s.quality[i] for s in scenes], [r.quality[i] for r in readings]
        out[f"rank_correlation_{axis}"] = float(spearmanr(truth, read).statistic)
    return out


def pixel_ascent(
    reward: Feedback, images: Tensor, prompts: list[str], *, steps: int = 100, step_size: float = 1 / 255
) -> Tensor:
    """Climb a reward in pixel space by signed gradients: a judge worth the name is not impressed."""
    pixels = images.clone()
    for _ in range(steps):
        pixels.requires_grad_(True)
        (gradient,) = torch.autograd.grad(reward(pixels, prompts).sum(), pixels)
        pixels = (pixels.detach() + step_size * gradient.sign()).clamp(0, 1)
    return pixels
