"""Scores of one model: one number per prompt, sample and metric."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from unifl.errors import UserError

OVERALL_PARTS = ("alignment_fraction", "structure", "style", "quality")
SUBSETS = {1: "alignment_one_object", 2: "alignment_two_object", 3: "alignment_three_object"}


@dataclass(frozen=True)
class ScoreTable:
    """``values[metric]`` is ``(p, s)``: p prompts, s samples of each (one per seed); ``nan`` where not applicable.

    Two tables with the same prompts and seeds are paired: the sample of prompt i and seed k started from the
    same noise in both.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    values: dict[str, Float[np.ndarray, "p s"]]

    def per_prompt(self, metric: str) -> Float[np.ndarray, "p"]:
        """Mean over the samples of each prompt."""
        if metric not in self.values:
            raise UserError(f"no metric {metric!r} in these scores; there are {', '.join(self.values)}")
        return _mean_without_nan(self.values[metric], axis=1)

    @staticmethod
    def join(tables: Sequence[ScoreTable]) -> ScoreTable:
        """Tables of different seeds on the same prompts, side by side."""
        first = tables[0]
        if any(
            table.prompts != first.prompts or table.values.keys() != first.values.keys() for table in tables
        ):
            raise UserError("score tables can be joined only over the same prompts and metrics")
        values = {name: np.concatenate([t.values[name] for t in tables], axis=1) for name in first.values}
        return ScoreTable(first.prompts, tuple(seed for t in tables for seed in t.seeds), values)


def build_table(
    scores: Mapping[str, np.ndarray],
    prompts: Sequence[str],
    *,
    seed: int,
    object_counts: Sequence[int] | None = None,
) -> ScoreTable:
    """A table of one sample per prompt from ``(p,)`` scores of `read_scores`, with subsets and ``overall`` added.

    ``overall`` is the mean of alignment fraction, structure, style and quality, of those that apply to the
    prompt.
    """
    columns = {name: values[:, None] for name, values in scores.items()}
    parts = np.concatenate([columns[name] for name in OVERALL_PARTS], axis=1)
    columns["overall"] = _mean_without_nan(parts, axis=1)[:, None]
    if object_counts is not None:
        columns |= _subsets(columns["alignment"], np.asarray(object_counts))
    return ScoreTable(tuple(prompts), (seed,), columns)


def _subsets(alignment: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    if counts.shape != (len(alignment),):
        raise UserError(f"{counts.size} object counts for {len(alignment)} prompts; give one per prompt")
    return {
        name: np.where((counts == number)[:, None], alignment, np.nan)
        for number, name in SUBSETS.items()
        if (counts == number).any()
    }


def _mean_without_nan(values: np.ndarray, *, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        # A row without any value is nan, which is what is wanted; numpy would also warn about it.
        warnings.simplefilter("ignore", category=RuntimeWarning)
        return np.nanmean(values, axis=axis)
