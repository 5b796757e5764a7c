"""The claims of RG-LCD (arXiv 2403.11027) and how each is decided from the scores of trained models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from unifl.reproduce.claims import Curves, Finding, Row, decided, win_row
from unifl.reproduce.distances import Distances
from unifl.reproduce.figures import Table, figure_of
from unifl.reproduce.paper import Decide, Paper
from unifl.reproduce.proxy_claims import black_box, hacking
from unifl.reproduce.readings import of_distillation
from unifl.reproduce.rg_lcd_trainings import (
    NUM_PROMPTS,
    PROXIES,
    SEEDS,
    STEP_COUNTS,
    TEACHER_STEPS,
    trainings,
)

_FULL = f"steps-{TEACHER_STEPS}"
_SHARES = {2: 0.85, 1: 0.6}
"""Of the teacher's alignment in its 50 steps, by the student's steps."""
_GAP = 0.5
"""Of the gap between the teacher in 4 steps and in 50."""


def distilled(table: Table, prepared: Path) -> Finding:
    """Claim a: a consistency model in a few steps against its teacher in 50."""
    reached = {
        steps: figure_of(_aligned(table, "lcd", f"steps-{steps}") - share * _aligned(table, "teacher", _FULL))
        for steps, share in _SHARES.items()
    }
    few, many = _aligned(table, "teacher", "steps-4"), _aligned(table, "teacher", _FULL)
    closed = figure_of(_aligned(table, "lcd", "steps-4") - few - _GAP * (many - few))
    distance = Distances(table, table.seeds("lcd", "teacher", "real"))
    far, near = (distance("teacher", look) for look in ("steps-4", _FULL))
    nearer = (far + (near - far) * _GAP - distance("lcd", "steps-4")).figure
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
            rows.append(Row(what=f"Frechet distance: {what}", figure=distance(model, look).figure))
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
        curves=_curves(table, ("lcd", "teacher")), **table.size("lcd", "teacher", look="steps-2"),
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
            f"lcd, no reward, in {n} steps beats teacher in 50",
            table.wins("no-reward", "teacher", look_a=f"steps-{n}", look_b=_FULL),
        )
        for n in STEP_COUNTS
    ]
    rows += [
        win_row(
            f"rg-lcd beats lcd without reward, both in {n} steps",
            table.wins("rg-lcd", "no-reward", look_a=f"steps-{n}", look_b=f"steps-{n}"),
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
        pictures={f"teacher-{_FULL}": "teacher, 50 steps", "no-reward-steps-2": "no reward, 2 steps",
                  "rg-lcd-steps-2": "rg-lcd, 2 steps"},
        curves=_curves(table, ("rg-lcd", "no-reward", "teacher")), **table.size("rg-lcd", "teacher", look="steps-2"),
    )  # fmt: skip


def _aligned(table: Table, training: str, look: str) -> Float[np.ndarray, "t p"]:
    return table.values(training, "alignment", look, seeds=table.seeds(training, "teacher", "lcd"))


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


CLAIMS: dict[str, Decide] = {"a": distilled, "b": guided, "c": hacking, "d": black_box}
NEEDED: dict[str, tuple[str, ...]] = {
    "a": ("real", "teacher", "lcd"),
    "b": ("real", "teacher", "lcd", "no-reward", "rg-lcd"),
    "c": ("real", "lcd", "lcd-longer", "direct", *PROXIES, "proxy-frozen"),
    "d": (
        *("lcd", "lcd-longer", "jpeg", "proxy-frozen"),
        *("lcd-again", "lcd-longer-again", "jpeg-again", "proxy-frozen-again"),
    ),
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
