"""Whether the base model is a fair start: mostly right, of mixed quality and varied; feedback has work to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unifl.evaluation.judge import Judge, read_features
from unifl.metrics.diversity import relative_diversity, seed_diversity
from unifl.models import Generator
from unifl.process import Spacing
from unifl.sampling import sample
from unifl.world.annotated import SceneImages
from unifl.world.scenes import QUALITIES, STYLES, parse, sample_prompts


@torch.no_grad()
def fair_start_numbers(
    generator: Generator,
    judge: Judge,
    *,
    guidance: float,
    spacing: Spacing,
    number: int = 500,
    num_steps: int = 20,
    seed: int = 82,
) -> dict[str, float]:
    """What a judge reads in two pictures each of `number` held-out prompts.

    Returns:
        the share of pictures that are wholly right by number of objects, the share whose style is recognised by
        style, mean and standard deviation of each quality, and diversity over seeds as a share of that of scenes
        rendered for the same prompts.
    """
    prompts = sample_prompts(number, seed=seed, held_out=True)
    drawn = [
        sample(generator, prompts, seed=seed + k, num_steps=num_steps, guidance=guidance, spacing=spacing)
        for k in range(2)
    ]
    scores = judge(torch.cat(drawn), prompts * 2)
    wanted = [parse(prompt) for prompt in prompts * 2]
    counts = np.array([len(description.things) for description in wanted])
    styles = np.array([description.style for description in wanted])
    out = {f"right_{n}": float(scores["alignment"][counts == n].mean()) for n in (1, 2, 3)}
    out |= {f"style_{style}": float(scores["style"][styles == style].mean()) for style in STYLES}
    for axis in QUALITIES:
        out[f"mean_{axis}"], out[f"std_{axis}"] = float(scores[axis].mean()), float(scores[axis].std())
    rendered = [SceneImages.of_prompts(prompts, seed=seed + k).images for k in range(2)]
    share = relative_diversity(_diversity(judge, drawn), _diversity(judge, rendered))
    return {**out, "diversity_share": share.value}


def _diversity(judge: Judge, pictures: Sequence[Tensor]) -> np.ndarray:
    return seed_diversity(np.stack([read_features(judge, images) for images in pictures], axis=1))
