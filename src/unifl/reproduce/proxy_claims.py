"""The claims of RG-LCD (arXiv 2403.11027) about its latent proxy: against hacking, and for experts without gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unifl.reproduce.claims import Curves, Finding, Row, decided, win_row
from unifl.reproduce.distances import Distance, distance
from unifl.reproduce.figures import Figure, Table, figure_of
from unifl.reproduce.rg_lcd_trainings import EXPERT, FOLLOWED_STEPS, LENGTH

_LOOK = _START = "steps-2"
_PLAIN = "lcd-longer"
"""Distilled as long as the others, without a reward."""
_HALF = 0.5
"""Of the direct run's gain, which the proxy has to reach."""
_SMALLER, _ALIGNED = 0.9, 0.05
_METRICS = (
    EXPERT,
    "high_frequency",
    "overall",
    "alignment",
    "structure",
    "style",
    "quality",
)
_AGREEMENT = "proxy/agreement"


def hacking(table: Table, prepared: Path) -> Finding:
    """Claim c: a reward that is climbed directly is hacked; through a proxy it is not."""
    models = ("direct", "proxy", "proxy-frozen", _PLAIN)
    equal = equal_reward(table)
    rises = {
        name: _differences(table, name, _PLAIN, seeds=table.seeds(*models)) for name in ("direct", "proxy")
    }
    lower = _differences(table, "direct", "proxy", seeds=table.seeds(*models))
    lower_at_equal = _differences(table, "direct", "proxy", seeds=table.seeds(*models), look=equal)
    gain = table.change(EXPERT, "proxy", _PLAIN, look_a=_LOOK, look_b=_LOOK)
    half = _beyond_half(table)
    liked = table.wins("proxy", "direct", look_a=_LOOK, look_b=_LOOK)
    rows = [win_row("gold: proxy beats direct", liked)]
    rows += [Row(what=f"{what}: direct - lcd", figure=figure) for what, figure in rises["direct"].items()]
    rows += [Row(what=f"{what}: direct - proxy", figure=figure) for what, figure in lower.items()]
    rows += [
        Row(what=f"{what}: direct at equal reward ({equal}) - proxy", figure=figure)
        for what, figure in lower_at_equal.items()
    ]
    rows += [
        Row(what="expert's reward: proxy - lcd", figure=gain),
        Row(what="expert's reward: (proxy - lcd) - half of (direct - lcd)", figure=half),
        win_row(
            f"gold: proxy beats direct at equal reward ({equal})",
            table.wins("proxy", "direct", look_a=_LOOK, look_b=equal),
        ),
        win_row("gold: proxy beats lcd", table.wins("proxy", _PLAIN, look_a=_LOOK, look_b=_LOOK)),
        win_row(
            "gold: proxy beats frozen proxy", table.wins("proxy", "proxy-frozen", look_a=_LOOK, look_b=_LOOK)
        ),
    ]
    rows += [_row(table, name, metric) for metric in _METRICS for name in models]
    rows += [
        Row(what=f"Frechet distance: {name}", figure=_far(table, name, table.seeds(*models)).figure)
        for name in models
    ]
    hacked = all(figure.low > 0 for figure in rises["direct"].values())
    mended = all(figure.low > 0 for figure in (*lower.values(), *lower_at_equal.values()))
    return decided(
        "c", "Climbed directly, a reward is hacked; through a latent proxy its gain comes without that",
        paper="FID 42.7 direct, 17.2 with proxy (ImageReward, 4 steps; second-hand)",
        rule=(
            "direct: the energy of high frequencies and the Frechet distance rise over LCD (intervals above 0); with "
            "the proxy both are lower than that, also than at the direct run's first checkpoint of at least the "
            "proxy's expert reward (intervals); the expert's reward rises over LCD (lower bound above 0) by at least "
            "half of the direct run's gain; and gold prefers the proxy's pictures to the direct ones (lower bound "
            "above 50 %)"
        ),
        holds=hacked and mended and gain.low > 0 and half.value >= 0 and liked.low > 0.5,
        rows=rows, curves=_curves(table, ("direct", "proxy", "proxy-frozen")),
        pictures={f"{_PLAIN}-{_LOOK}": "lcd", f"direct-{_LOOK}": "direct", f"proxy-{_LOOK}": "proxy",
                  f"proxy-frozen-{_LOOK}": "frozen proxy"},
        notes=(
            "All four go on from the same LCD for equally many steps. The proxy and its expert order "
            f"{_agreement(table, slice(0, 10)):.1%} of pairs alike in the first ten steps, and "
            f"{_agreement(table, slice(-50, None)):.1%} in the last fifty (1/2 by chance)."
        ),
        **table.size(*models, look=_LOOK),
    )  # fmt: skip


def black_box(table: Table, prepared: Path) -> Finding:
    """Claim d: an expert without gradient, the size of a JPEG."""
    models = ("jpeg", "proxy-frozen", _PLAIN)
    size = {name: table.values(name, "jpeg", _LOOK, seeds=table.seeds(*models)) for name in models}
    smaller = figure_of(size["jpeg"] - _SMALLER * size[_PLAIN])
    aligned = table.change("alignment", "jpeg", _PLAIN, look_a=_LOOK, look_b=_LOOK)
    less = figure_of(size["jpeg"] - size["proxy-frozen"])
    rows = [
        Row(what=f"kB: proxy - {_SMALLER:g} x lcd", figure=smaller),
        Row(what="alignment: proxy - lcd", figure=aligned),
        Row(what="kB: proxy - frozen proxy", figure=less),
        *(_row(table, name, metric) for metric in ("jpeg", *_METRICS[1:]) for name in models),
    ]
    return decided(
        "d", "An expert without gradient, the size of a JPEG file, is followed through the proxy",
        paper="experts need not be differentiable (abstract)",
        rule=(
            "the file is at least 10 % smaller than LCD's (interval), alignment falls by no more than 0.05 (lower "
            "bound), and with a frozen proxy the file is larger (interval)"
        ),
        holds=smaller.high < 0 and aligned.low > -_ALIGNED and less.high < 0, rows=rows,
        pictures={f"{_PLAIN}-{_LOOK}": "lcd", f"jpeg-{_LOOK}": "proxy", f"proxy-frozen-{_LOOK}": "frozen proxy"},
        **table.size(*models, look=_LOOK),
    )  # fmt: skip


def equal_reward(table: Table) -> str:
    """The direct run's first look whose expert reward is at least that of the proxy at its end."""
    reached = table.mean("proxy", EXPERT, _LOOK).value
    looks = [f"after-{step}" for step in FOLLOWED_STEPS]
    return next((look for look in looks if table.mean("direct", EXPERT, look).value >= reached), _LOOK)


def _differences(table: Table, a: str, b: str, *, seeds: list[int], look: str = _LOOK) -> dict[str, Figure]:
    """What tells hacking: a in one look minus b at its end."""
    return {
        "high frequencies": table.change("high_frequency", a, b, look_a=look, look_b=_LOOK),
        "Frechet distance": (_far(table, a, seeds, look) - _far(table, b, seeds)).figure,
    }


def _far(table: Table, training: str, seeds: list[int], look: str = _LOOK) -> Distance:
    return distance(table, training, look, seeds=seeds)


def _beyond_half(table: Table) -> Figure:
    proxy, direct, plain = (
        table.values(name, EXPERT, _LOOK, seeds=table.seeds("proxy", "direct", _PLAIN))
        for name in ("proxy", "direct", _PLAIN)
    )
    return figure_of(proxy - plain - _HALF * (direct - plain))


def _row(table: Table, training: str, metric: str) -> Row:
    return Row(what=f"{metric}: {training}", figure=table.mean(training, metric, _LOOK))


def _agreement(table: Table, steps: slice) -> float:
    logs = [table.pieces["proxy", seed].logs[_AGREEMENT][steps] for seed in table.seeds("proxy")]
    return float(np.mean(np.concatenate(logs)))


def _curves(table: Table, models: tuple[str, ...]) -> Curves:
    looks = {0: _START, **{step: f"after-{step}" for step in FOLLOWED_STEPS}, LENGTH: _LOOK}
    curves: Curves = {"agreement of proxy and expert over training steps": {"proxy": _agreements(table)}}
    for title, metric in (("expert's reward", EXPERT), ("high frequencies", "high_frequency"),
                          ("gold: overall", "overall")):  # fmt: skip
        curves[f"{title} over training steps"] = {
            model: [
                (float(step), y.value, y.low, y.high)
                for step, look in looks.items()
                for y in [table.mean(model if step else "lcd", metric, look)]
            ]
            for model in models
        }
    return curves


def _agreements(table: Table) -> list[tuple[float, float, float, float]]:
    """Means over ten steps and all seeds, between those of the least and of the most agreeing seed."""
    logs = np.stack([table.pieces["proxy", seed].logs[_AGREEMENT] for seed in table.seeds("proxy")])
    means = logs.reshape(len(logs), -1, 10).mean(axis=2)
    return [(10.0 * n + 5, column.mean(), column.min(), column.max()) for n, column in enumerate(means.T)]
