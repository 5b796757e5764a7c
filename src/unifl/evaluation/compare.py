"""Paired comparison of two evaluated models: win rate on the overall score, and the change of every metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unifl.errors import UserError
from unifl.evaluation.judge import JUDGE_KEYS
from unifl.evaluation.model_result import ModelResult
from unifl.evaluation.scores import ScoreTable
from unifl.metrics.intervals import RESAMPLES, Interval, change_interval, difference_interval, ratio_interval
from unifl.metrics.paired import MARGIN, Paired, paired_comparison
from unifl.metrics.result import Comparison


@dataclass(frozen=True)
class TableComparison:
    """``paired`` is the win rate on one metric; ``differences`` are ``a - b`` for all metrics."""

    paired: Paired
    differences: dict[str, Interval]


def compare_tables(
    a: ScoreTable,
    b: ScoreTable,
    *,
    metric: str = "overall",
    margin: float = MARGIN,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TableComparison:
    """Compare the scores of two models on the same prompts and noise.

    Args:
        a: scores of the first model.
        b: scores of the second.
        metric: what decides a pair.
        margin: differences up to this size are ties.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Raises:
        UserError: if prompts or seeds differ.
    """
    _check_pairing(a, b)
    for table in (a, b):
        table.per_prompt(metric)  # names the metrics there are if this one is missing
    paired = paired_comparison(
        a.values[metric], b.values[metric], margin=margin, resamples=resamples, seed=seed
    )
    return TableComparison(paired, _table_differences(a, b, resamples=resamples, seed=seed))


def _table_differences(
    a: ScoreTable, b: ScoreTable, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """``a - b`` for all metrics that apply to some prompt."""
    changes = {}
    for name in a.values:
        gap = a.per_prompt(name) - b.per_prompt(name) if name in b.values else np.full(1, np.nan)
        if np.isfinite(gap).any():
            changes[name] = difference_interval(
                a.per_prompt(name), b.per_prompt(name), resamples=resamples, seed=seed
            )
    return changes


def differences(a: ModelResult, b: ModelResult) -> dict[str, Interval]:
    """``a - b`` with interval for every metric that both have, distances and diversity included.

    Raises:
        UserError: other prompts, seeds or judges.
    """
    _check_judges(a, b)
    _check_pairing(a.scores, b.scores)
    scores = _table_differences(a.scores, b.scores)
    rest = [name for name in a.metrics if name in b.metrics and name not in scores]
    return scores | {name: change_in(name, a, b) for name in rest}


def change_in(
    metric: str, a: ModelResult, b: ModelResult, *, kind: Literal["difference", "ratio"] = "difference"
) -> Interval:
    """Paired change of one metric from ``b`` to ``a``, as a difference or a ratio, with its interval.

    Distances are compared at equal ``n`` only, and through replicates on the same resamples.

    Raises:
        UserError: other prompts, seeds or judges, or distances of another ``n``.
    """
    _check_pairing(a.scores, b.scores)
    _check_judges(a, b)
    if metric in a.replicates and metric in b.replicates:
        first, second = a.metrics[metric], b.metrics[metric]
        if first.n != second.n:
            raise UserError(
                f"{metric} was measured on {first.n} and {second.n} samples; evaluate both on the same n"
            )
        return change_interval(
            first.value, a.replicates[metric], second.value, b.replicates[metric], n=first.n, kind=kind
        )
    if metric == "diversity":
        if len(a.diversity) != len(b.diversity) or not len(a.diversity):
            raise UserError(
                "diversity was measured on different prompts; evaluate both models in the same way"
            )
        values = (a.diversity, b.diversity)
    else:
        values = (a.scores.per_prompt(metric), b.scores.per_prompt(metric))
    return difference_interval(*values) if kind == "difference" else ratio_interval(*values)


def compare_models(
    results: Mapping[str, ModelResult],
    pairs: Sequence[tuple[str, str]],
    *,
    judge: str,
    metric: str = "overall",
    margin: float | None = None,
) -> list[Comparison]:
    """Rows of ``result.json`` for pairs of model ids; ``margin`` None takes that of the metric, see `margin_of`.

    Raises:
        UserError: an id or a metric that is not there; other prompts, seeds or judges.
    """
    rows = []
    edge = margin_of(metric) if margin is None else margin
    for a, b in pairs:
        missing = [name for name in (a, b) if name not in results]
        if missing:
            raise UserError(f"no evaluated model {missing[0]!r}; there are {', '.join(results)}")
        outcome = compare_tables(results[a].scores, results[b].scores, metric=metric, margin=edge)
        _check_judges(results[a], results[b])
        rows.append(Comparison.of(outcome.paired, a=a, b=b, judge=judge, metric=metric))
    return rows


def margin_of(metric: str) -> float:
    """Differences up to which two pictures tie: 0.01 for a judge's scores in [0, 1], none for scales of others."""
    return MARGIN if metric.partition("/")[0] in (*JUDGE_KEYS, "overall") else 0.0


def check_alike(a: ModelResult, b: ModelResult) -> None:
    """Refuse models that cannot be compared pair by pair.

    Raises:
        UserError: Other prompts, seeds or judges.
    """
    _check_pairing(a.scores, b.scores)
    _check_judges(a, b)


def _check_pairing(a: ScoreTable, b: ScoreTable) -> None:
    if a.prompts != b.prompts:
        raise UserError("the two models were evaluated on different prompts; evaluate both on the same list")
    if a.seeds != b.seeds:
        raise UserError(
            f"the two models were evaluated with seeds {a.seeds} and {b.seeds}; use the same seeds"
        )


def _check_judges(a: ModelResult, b: ModelResult) -> None:
    first, second = a.origin, b.origin
    if first is None or second is None:
        return
    if first.judge != second.judge:
        raise UserError(
            f"the two models were judged by {first.judge} and by {second.judge}; evaluate both with the same judge"
        )
    if "" != first.judge_fingerprint != second.judge_fingerprint != "":
        raise UserError(
            f"the judge {first.judge} changed between the two evaluations; evaluate both models again"
        )
    for name in first.judge_sees.keys() & second.judge_sees.keys():
        if first.judge_sees[name] != second.judge_sees[name]:
            raise UserError(
                f"the judge {first.judge} or the references {name} changed between the two evaluations; "
                "evaluate both models again"
            )
