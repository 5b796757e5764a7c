"""The claims of RG-LCD (arXiv 2403.11027) about its latent proxy: against hacking, and for experts without gradient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unifl.reproduce.claims import Curves, Finding, Row, decided, win_row
from unifl.reproduce.distances import Distances
from unifl.reproduce.figures import Figure, Table, figure_of
from unifl.reproduce.rg_lcd_trainings import AGAIN_LENGTH, EXPERT, FOLLOWED, LENGTH, PROXIES

_LOOK = "steps-2"
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
    seeds = table.seeds("direct", "proxy-frozen", "lcd", _PLAIN, *PROXIES)
    distance = Distances(table, seeds)
    rises = _differences(table, distance, "direct", _PLAIN)
    found = {name: _against_direct(table, distance, name, seeds) for name in PROXIES}
    hacked = all(figure.low > 0 for figure in rises.values())
    ours = found["proxy"]
    rows = [win_row("gold: proxy beats direct", ours.liked)]
    rows += [Row(what=f"{what}: direct - lcd", figure=figure) for what, figure in rises.items()]
    for name, against in found.items():
        rows += against.rows(name, table)
    rows.append(win_row("gold: proxy beats frozen proxy", _wins(table, "proxy", "proxy-frozen")))
    models = (_PLAIN, "direct", *PROXIES, "proxy-frozen")
    rows += [_row(table, name, metric) for metric in _METRICS for name in models]
    rows += [Row(what=f"Frechet distance: {name}", figure=distance(name, _LOOK).figure) for name in models]
    others = ", ".join(
        f"{name} {'holds' if hacked and against.holds else 'does not hold'}"
        for name, against in found.items()
        if name != "proxy"
    )
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
        holds=hacked and ours.holds, rows=rows, curves=_curves(table),
        pictures={f"{_PLAIN}-{_LOOK}": "lcd", f"direct-{_LOOK}": "direct", f"proxy-{_LOOK}": "proxy",
                  f"proxy-frozen-{_LOOK}": "frozen proxy"},
        notes=(
            f"All go on from the same LCD for {LENGTH} steps. The proxy and its expert order "
            f"{_agreement(table, slice(0, 10)):.1%} of pairs alike in the first ten steps, and "
            f"{_agreement(table, slice(-50, None)):.1%} in the last fifty (1/2 by chance). Three settings of the proxy "
            "were fixed before gold saw any run; the first, which the validation judge liked best, decides. "
            f"By the same rule, {others}."
        ),
        **table.size("direct", *PROXIES, look=_LOOK),
    )  # fmt: skip


@dataclass(frozen=True)
class _Against:
    """What the rule of claim c reads off one setting of the proxy.

    Attributes:
        equal: The look of the direct run at equal reward.
        lower: What the direct run has more of at its end: of high frequencies, of distance.
        lower_at_equal: The same in that look.
        gain: Of the expert's reward over LCD.
        half: Of the same, beyond half of the direct run's.
        liked: How often gold prefers the proxy.
    """

    equal: str
    lower: dict[str, Figure]
    lower_at_equal: dict[str, Figure]
    gain: Figure
    half: Figure
    liked: Figure

    @property
    def holds(self) -> bool:
        """All that the rule asks of the proxy."""
        lower = all(figure.low > 0 for figure in (*self.lower.values(), *self.lower_at_equal.values()))
        return lower and self.gain.low > 0 and self.half.value >= 0 and self.liked.low > 0.5

    def rows(self, name: str, table: Table) -> list[Row]:
        """The lines of one setting."""
        at_equal = f"direct at equal reward ({self.equal})"
        return [
            *(Row(what=f"{what}: direct - {name}", figure=figure) for what, figure in self.lower.items()),
            *(
                Row(what=f"{what}: {at_equal} - {name}", figure=figure)
                for what, figure in self.lower_at_equal.items()
            ),
            Row(what=f"expert's reward: {name} - lcd", figure=self.gain),
            Row(what=f"expert's reward: ({name} - lcd) - half of (direct - lcd)", figure=self.half),
            win_row(f"gold: {name} beats direct", self.liked),
            win_row(f"gold: {name} beats {at_equal}", _wins(table, name, "direct", self.equal)),
            win_row(f"gold: {name} beats lcd", _wins(table, name, _PLAIN)),
        ]


def _against_direct(table: Table, distance: Distances, name: str, seeds: list[int]) -> _Against:
    equal = equal_reward(table, name)
    gained, direct, plain = (
        table.values(training, EXPERT, _LOOK, seeds=seeds) for training in (name, "direct", _PLAIN)
    )
    return _Against(
        equal=equal,
        lower=_differences(table, distance, "direct", name),
        lower_at_equal=_differences(table, distance, "direct", name, look=equal),
        gain=figure_of(gained - plain),
        half=figure_of(gained - plain - _HALF * (direct - plain)),
        liked=_wins(table, name, "direct"),
    )


def _wins(table: Table, a: str, b: str, look: str = _LOOK) -> Figure:
    return table.wins(a, b, look_a=_LOOK, look_b=look)


def black_box(table: Table, prepared: Path) -> Finding:
    """Claim d: an expert without gradient, the size of a JPEG, in two settings of which the second decides."""
    first, again = _shrunk(table, ""), _shrunk(table, "-again")
    models = _shrinking("-again")
    verdict = "holds" if first.holds else "does not hold"
    return decided(
        "d", "An expert without gradient, the size of a JPEG file, is followed through the proxy",
        paper="experts need not be differentiable (abstract)",
        rule=(
            "the file is at least 10 % smaller than LCD's (interval), alignment falls by no more than 0.05 (lower "
            "bound), and with a frozen proxy the file is larger (interval)"
        ),
        holds=again.holds,
        rows=[*again.rows(table), *first.rows(table)],
        pictures={f"{name}-{_LOOK}": title for name, title in zip(
            models, ("proxy", "frozen proxy", "lcd"), strict=True)},
        prompts="fresh",
        notes=(
            f"The setting fixed first (of {LENGTH} steps; the rows without \"again\") {verdict} by the same rule. "
            "Then the validation judge was asked again, on training prompts and in runs of another seed: batches of "
            "64, a proxy pre-trained for five times as many steps, a sharper temperature, and beside the proxy that "
            "learns from the expert a frozen copy of it as a second reward, which holds alignment; "
            f"{AGAIN_LENGTH} steps lie between the two lengths that were tried. All controls have the same batches, "
            "rate and steps. That was fixed before gold saw any run of it, and was judged on new training seeds and "
            "new held-out prompts; it decides."
        ),
        **table.size(*models, look=_LOOK),
    )  # fmt: skip


def _shrinking(suffix: str) -> tuple[str, str, str]:
    """The model that follows the size, that of the frozen proxy, and LCD, in one setting of claim d."""
    return f"jpeg{suffix}", f"proxy-frozen{suffix}", f"{_PLAIN}{suffix}"


@dataclass(frozen=True)
class _Shrunk:
    """What the rule of claim d reads off one setting.

    Attributes:
        suffix: Of the names of its models.
        smaller: kB beyond nine tenths of LCD's.
        aligned: The change of alignment.
        less: kB beyond those with a frozen proxy.
    """

    suffix: str
    smaller: Figure
    aligned: Figure
    less: Figure

    @property
    def holds(self) -> bool:
        """All that the rule asks."""
        return self.smaller.high < 0 and self.aligned.low > -_ALIGNED and self.less.high < 0

    def rows(self, table: Table) -> list[Row]:
        """The lines of one setting."""
        again = ", again" if self.suffix else ""
        models = _shrinking(self.suffix)
        return [
            Row(what=f"kB{again}: proxy - {_SMALLER:g} x lcd", figure=self.smaller),
            Row(what=f"alignment{again}: proxy - lcd", figure=self.aligned),
            Row(what=f"kB{again}: proxy - frozen proxy", figure=self.less),
            *(_row(table, name, metric) for metric in ("jpeg", *_METRICS[1:]) for name in models),
        ]


def _shrunk(table: Table, suffix: str) -> _Shrunk:
    models = followed, frozen, plain = _shrinking(suffix)
    size = {name: table.values(name, "jpeg", _LOOK, seeds=table.seeds(*models)) for name in models}
    return _Shrunk(
        suffix=suffix,
        smaller=figure_of(size[followed] - _SMALLER * size[plain]),
        aligned=table.change("alignment", followed, plain, look_a=_LOOK, look_b=_LOOK),
        less=figure_of(size[followed] - size[frozen]),
    )


def equal_reward(table: Table, proxy: str = "proxy") -> str:
    """The direct run's first look whose expert reward is at least that of a proxy at its end."""
    reached = table.mean(proxy, EXPERT, _LOOK).value
    looks = [f"after-{step}" for step in FOLLOWED]
    return next((look for look in looks if table.mean("direct", EXPERT, look).value >= reached), _LOOK)


def _differences(
    table: Table, distance: Distances, a: str, b: str, *, look: str = _LOOK
) -> dict[str, Figure]:
    """What tells hacking: a in one look minus b at its end."""
    return {
        "high frequencies": table.change("high_frequency", a, b, look_a=look, look_b=_LOOK),
        "Frechet distance": (distance(a, look) - distance(b, _LOOK)).figure,
    }


def _row(table: Table, training: str, metric: str) -> Row:
    return Row(what=f"{metric}: {training}", figure=table.mean(training, metric, _LOOK))


def _agreement(table: Table, steps: slice) -> float:
    logs = [table.pieces["proxy", seed].logs[_AGREEMENT][steps] for seed in table.seeds("proxy")]
    return float(np.mean(np.concatenate(logs)))


def _curves(table: Table) -> Curves:
    curves: Curves = {"agreement of proxy and expert over training steps": {"proxy": _agreements(table)}}
    for title, metric in (("expert's reward", EXPERT), ("high frequencies", "high_frequency"),
                          ("gold: overall", "overall")):  # fmt: skip
        curves[f"{title} over training steps"] = {
            model: [
                (float(step), y.value, y.low, y.high)
                for step, name, look in [
                    (0, "lcd", _LOOK),
                    *((step, model, f"after-{step}") for step in (FOLLOWED if model == "direct" else ())),
                    (LENGTH, model, _LOOK),
                ]
                for y in [table.mean(name, metric, look)]
            ]
            for model in ("direct", *PROXIES, "proxy-frozen")
        }
    return curves


def _agreements(table: Table) -> list[tuple[float, float, float, float]]:
    """Means over ten steps and all seeds, between those of the least and of the most agreeing seed."""
    logs = np.stack([table.pieces["proxy", seed].logs[_AGREEMENT] for seed in table.seeds("proxy")])
    means = logs.reshape(len(logs), -1, 10).mean(axis=2)
    return [(10.0 * n + 5, column.mean(), column.min(), column.max()) for n, column in enumerate(means.T)]
