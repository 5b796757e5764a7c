"""The claims of RG-LCD (arXiv 2403.11027) and how each is decided from the scores of trained models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from unifl.metrics.frechet import frechet_distance, frechet_replicates
from unifl.metrics.intervals import bootstrap_counts, centred_interval, seed_prompt_interval
from unifl.reproduce.claims import Curves, Finding, Row, decided, win_row
from unifl.reproduce.figures import Figure, Table
from unifl.reproduce.paper import Decide, Paper
from unifl.reproduce.readings import of_distillation
from unifl.reproduce.rg_lcd_trainings import NUM_PROMPTS, SEEDS, STEP_COUNTS, TEACHER_STEPS, trainings

_FULL = f"steps-{TEACHER_STEPS}"
_SHARES = {2: 0.85, 1: 0.6}
"""Of the teacher's alignment in its 50 steps, by the student's steps."""
_GAP = 0.5
"""Of the gap between the teacher in 4 steps and in 50."""
_RESAMPLES = 200


def distilled(table: Table, prepared: Path) -> Finding:
    """Claim a: a consistency model in a few steps against its teacher in 50."""
    reached = {
        steps: _figure(_aligned(table, "lcd", f"steps-{steps}") - share * _aligned(table, "teacher", _FULL))
        for steps, share in _SHARES.items()
    }
    few, many = _aligned(table, "teacher", "steps-4"), _aligned(table, "teacher", _FULL)
    closed = _figure(_aligned(table, "lcd", "steps-4") - few - _GAP * (many - few))
    nearer = _closed_distance(table)
    rows = [
        Row(what=f"alignment: lcd in {n} steps - {share:g} x teacher in 50", figure=reached[n])
        for n, share in _SHARES.items()
    ]
    rows.append(Row(what="alignment: lcd in 4 steps - the middle of teacher in 4 and in 50", figure=closed))
    rows.append(Row(what="Frechet: the middle of teacher in 4 and in 50 - lcd in 4 steps", figure=nearer))
    for model, looks in (("teacher", (_FULL, "steps-4")), ("lcd", tuple(f"steps-{n}" for n in STEP_COUNTS))):
        for look in looks:
            what = f"{model} in {look.removeprefix('steps-')} steps"
            rows.append(Row(what=f"alignment: {what}", figure=table.mean(model, "alignment", look)))
            rows.append(Row(what=f"overall: {what}", figure=table.mean(model, "overall", look)))
            rows.append(Row(what=f"Frechet distance: {what}", figure=_distance(table, model, look)))
    return decided(
        "a", "Consistency distillation does in 1 to 4 steps nearly what its teacher does in 50",
        paper="arXiv 2310.04378: 2 to 4 steps near 50",
        rule=(
            "alignment in 2 steps is at least 0.85, and in 1 step at least 0.6, of the teacher's in 50; and 4 steps "
            "close half of the gap between the teacher in 4 and in 50 steps, in alignment and in Frechet distance (all "
            "lower bounds of intervals)"
        ),
        holds=all(figure.low >= 0 for figure in (*reached.values(), closed, nearer)), rows=rows,
        pictures={f"teacher-{_FULL}": "teacher, 50 steps", "lcd-steps-1": "1 step", "lcd-steps-2": "2 steps",
                  "lcd-steps-4": "4 steps"},
        curves=_curves(table, ("lcd", "teacher")), **_size(table, "lcd"),
    )  # fmt: skip


def guided(table: Table, prepared: Path) -> Finding:
    """Claim b: with a reward, two steps are preferred to the teacher's fifty."""
    wins = {
        steps: table.wins("rg-lcd", "teacher", look_a=f"steps-{steps}", look_b=_FULL)
        for steps in sorted(STEP_COUNTS, key=lambda number: number != 2)
    }
    rows = [win_row(f"rg-lcd in {n} steps beats teacher in 50", rate) for n, rate in wins.items()]
    rows += [
        win_row(
            f"lcd in {n} steps beats teacher in 50",
            table.wins("lcd", "teacher", look_a=f"steps-{n}", look_b=_FULL),
        )
        for n in STEP_COUNTS
    ]
    rows += [
        win_row(
            f"rg-lcd beats lcd, both in {n} steps",
            table.wins("rg-lcd", "lcd", look_a=f"steps-{n}", look_b=f"steps-{n}"),
        )
        for n in STEP_COUNTS
    ]
    rows += [
        Row(
            what=f"{metric}: rg-lcd in 2 steps - teacher in 50",
            figure=table.change(metric, "rg-lcd", "teacher", look_a="steps-2", look_b=_FULL),
        )
        for metric in ("overall", "alignment", "structure", "style", "quality", "high_frequency")
    ]
    return decided(
        "b", "Guided by a reward, 2 steps are preferred to the teacher's 50",
        paper="2 steps preferred to 50 by people (abstract): 25 times fewer evaluations",
        rule="the lower bound of the win rate in 2 steps is above 50 %",
        holds=wins[2].low > 0.5, rows=rows,
        pictures={f"teacher-{_FULL}": "teacher, 50 steps", "lcd-steps-2": "lcd, 2 steps",
                  "rg-lcd-steps-2": "rg-lcd, 2 steps"},
        curves=_curves(table, ("rg-lcd", "lcd", "teacher")), **_size(table, "rg-lcd"),
    )  # fmt: skip


def _size(table: Table, training: str) -> dict[str, int]:
    seeds = table.seeds(training, "teacher")
    return {"seeds": len(seeds), "pairs": table.values(training, "overall", "steps-2", seeds=seeds).size}


def _aligned(table: Table, training: str, look: str) -> Float[np.ndarray, "t p"]:
    return table.values(training, "alignment", look, seeds=table.seeds(training, "teacher", "lcd"))


def _figure(values: Float[np.ndarray, "t p"]) -> Figure:
    found = seed_prompt_interval(values)
    return Figure(
        found.value, found.low, found.high, found.n, seeds=tuple(np.nanmean(values, axis=1).tolist())
    )


def _curves(table: Table, models: tuple[str, ...]) -> Curves:
    return {
        f"gold: {metric} over sampler steps": {
            model: [
                (float(n), found.value, found.low, found.high)
                for n in STEP_COUNTS
                for found in [table.mean(model, metric, f"steps-{n}")]
            ]
            for model in models
        }
        for metric in ("alignment", "overall")
    }


# --- Frechet distance to held-out scenes, all training seeds together ------------------------------------------


def _features(table: Table, training: str, look: str) -> Float[np.ndarray, "n k"]:
    parts = [
        table.pieces[training, seed].looks[look].features for seed in table.seeds("lcd", "teacher", "real")
    ]
    assert all(part is not None for part in parts)
    return np.concatenate([part for part in parts if part is not None])


def _replicates(table: Table, training: str, look: str) -> tuple[float, Float[np.ndarray, " r"]]:
    """The distance, and that of resamples of prompts, which all models and seeds share."""
    own, real = _features(table, training, look), _features(table, "real", "real")
    seeds = len(table.seeds("lcd", "teacher", "real"))
    counts = np.tile(bootstrap_counts(len(own) // seeds, resamples=_RESAMPLES), (1, seeds))
    return frechet_distance(own, real), frechet_replicates(own, real, counts)


def _distance(table: Table, training: str, look: str) -> Figure:
    value, replicates = _replicates(table, training, look)
    return _pooled(table, value, replicates)


def _closed_distance(table: Table) -> Figure:
    found = [
        _replicates(table, training, look)
        for training, look in (("teacher", "steps-4"), ("teacher", _FULL), ("lcd", "steps-4"))
    ]
    value, replicates = (few + _GAP * (many - few) - ours for few, many, ours in (zip(*found, strict=True)))
    return _pooled(table, float(value), np.asarray(replicates))


def _pooled(table: Table, value: float, replicates: Float[np.ndarray, " r"]) -> Figure:
    n = len(_features(table, "real", "real"))
    found = centred_interval(value, replicates, n=n)
    return Figure(found.value, found.low, found.high, n, seeds=())


CLAIMS: dict[str, Decide] = {"a": distilled, "b": guided}
NEEDED: dict[str, tuple[str, ...]] = {
    "a": ("real", "teacher", "lcd"),
    "b": ("real", "teacher", "lcd", "rg-lcd"),
}
PAPER = Paper(
    name="rg-lcd",
    title="Latent consistency distillation with a reward, claim by claim",
    trainings=trainings,
    claims=CLAIMS,
    needed=NEEDED,
    seeds=SEEDS,
    num_prompts=NUM_PROMPTS,
    readings=of_distillation,
    keeps_features=True,
)
