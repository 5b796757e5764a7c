"""Several models in one order, from all comparisons of two of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from unifl.evaluation.compare import check_alike, margin_of
from unifl.evaluation.model_result import ModelResult
from unifl.metrics.bradley_terry import Ranking, bradley_terry
from unifl.metrics.paired import outcomes


def rank_models(results: Mapping[str, ModelResult], *, metric: str, margin: float | None = None) -> Ranking:
    """Bradley-Terry strengths of models on the same prompts and noise; comparisons of one prompt belong together.

    Args:
        results: Two or more evaluated models by id.
        metric: What decides a pair.
        margin: Differences up to this size are ties; None takes that of the metric.

    Raises:
        UserError: Other prompts, seeds or judges; a metric that is missing; or a model that won or lost everything, for
            which there is no finite strength.
    """
    names = list(results)
    edge = margin_of(metric) if margin is None else margin
    parts = []
    for a, b in combinations(range(len(names)), 2):
        first, second = results[names[a]], results[names[b]]
        check_alike(first, second)
        for one in (first, second):
            one.scores.per_prompt(metric)  # names the metrics there are if this one is missing
        won = outcomes(first.scores.values[metric], second.scores.values[metric], margin=edge)
        prompt, sample = np.isfinite(won).nonzero()
        parts.append((np.full(len(prompt), a), np.full(len(prompt), b), won[prompt, sample], prompt))
    first_side, second_side, outcome, unit = (np.concatenate(side) for side in zip(*parts, strict=True))
    return bradley_terry(names, first_side, second_side, outcome, units=unit)
