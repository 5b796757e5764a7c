"""Scores by the groups of a suite: its categories, styles or tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from unifl.errors import UserError
from unifl.evaluation.judge import JUDGE_KEYS
from unifl.evaluation.scores import SUBSETS, ScoreTable
from unifl.metrics.intervals import Interval, group_mean_interval, group_mean_replicates

MEAN_OF_GROUPS = "mean of groups"


def with_groups(
    table: ScoreTable, groups: Sequence[str] | None, *, resamples: int, seed: int
) -> tuple[ScoreTable, dict[str, Interval], dict[str, Float[np.ndarray, " r"]]]:
    """A table with a column for each score in each group, and the means over groups.

    Args:
        table: Scores of one model.
        groups: The group of each prompt; None changes nothing.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Returns:
        The table; `<score>/mean of groups` with intervals, in which each group counts once; and their replicates.

    Raises:
        UserError: Another number of groups than of prompts.
    """
    if groups is None:
        return table, {}, {}
    if len(groups) != len(table.prompts):
        raise UserError(f"{len(groups)} groups for {len(table.prompts)} prompts; give one per prompt")
    skipped = {*JUDGE_KEYS, *SUBSETS.values()}
    names = [
        name for name, values in table.values.items() if name not in skipped and np.isfinite(values).any()
    ]
    of = np.asarray(groups)
    columns, means, replicates = dict(table.values), {}, {}
    for name in names:
        for group in dict.fromkeys(groups):
            columns[f"{name}/{group}"] = np.where((of == group)[:, None], table.values[name], np.nan)
        key, values = f"{name}/{MEAN_OF_GROUPS}", table.per_prompt(name)
        means[key] = group_mean_interval(values, groups, resamples=resamples, seed=seed)
        replicates[key] = group_mean_replicates(values, groups, resamples=resamples, seed=seed)
    return ScoreTable(table.prompts, table.seeds, columns), means, replicates
