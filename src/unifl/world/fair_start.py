"""Whether the base model is a fair start: mostly right, of mixed quality and varied; feedback has work to do."""

from __future__ import annotations

from functools import partial

import numpy as np

from unifl.evaluation import Judge, evaluate_model, judge_features
from unifl.evaluation.scores import SUBSETS
from unifl.metrics.diversity import relative_diversity, seed_diversity
from unifl.models import Generator
from unifl.process import Spacing
from unifl.sampling import sample
from unifl.world.annotated import SceneImages
from unifl.world.scenes import QUALITIES, STYLES, parse, sample_prompts


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
    wanted, seeds = [parse(prompt) for prompt in prompts], (seed, seed + 1)
    found = evaluate_model(
        partial(sample, generator, num_steps=num_steps, guidance=guidance, spacing=spacing),
        prompts,
        judge,
        seeds=seeds,
        object_counts=[len(description.things) for description in wanted],
        diversity_prompts=number,
        diversity_seeds=len(seeds),
        batch_size=32,
        num_previews=0,
    )
    out = {f"right_{n}": found.metrics[subset].value for n, subset in SUBSETS.items()}
    scores, styles = found.scores.values, np.array([description.style for description in wanted])
    out |= {f"style_{style}": float(scores["style"][styles == style].mean()) for style in STYLES}
    for axis in QUALITIES:
        out[f"mean_{axis}"], out[f"std_{axis}"] = float(scores[axis].mean()), float(scores[axis].std())
    rendered = [judge_features(judge, SceneImages.of_prompts(prompts, seed=s).images) for s in seeds]
    share = relative_diversity(found.diversity, seed_diversity(np.stack(rendered, axis=1)))
    return {**out, "diversity_share": share.value}
