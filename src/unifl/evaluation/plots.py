"""Line charts as inline SVG that follow the colours and the font of the page that holds them.

matplotlib draws with placeholder colours, which are then replaced by CSS variables, so that one drawing
serves the light and the dark theme: ``--ink`` text, ``--line`` axes and grid, ``--s1`` to ``--s8`` series.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unifl.evaluation.audit import Audit, Curve

NUM_COLORS = 8
_INK, _LINE = "#010203", "#010204"
_SERIES = [f"#0102{index + 16:02x}" for index in range(NUM_COLORS)]
_STYLES = (("-", ""), ("--", " (dashed)"), (":", " (dotted)"))
"""Of lines, and how the legend calls them: for those of the first eight colours, of the next, and of the rest."""
_VARIABLES = {_INK: "var(--muted)", _LINE: "var(--line)"} | {
    color: f"var(--s{index + 1})" for index, color in enumerate(_SERIES)
}
_RC = {
    "svg.fonttype": "none",  # text stays text: it takes the font of the page and can be searched
    "font.size": 9.5,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "axes.formatter.limits": (-3, 4),
}


@dataclass(frozen=True)
class Chart:
    """A drawing with its title and legend; legend entries are (colour number from 1, text), with the line's style."""

    title: str
    svg: str
    legend: tuple[tuple[int, str], ...]


def line_chart(title: str, curves: Sequence[Curve], *, width: float = 4.4, height: float = 2.35) -> Chart:
    """Curves over training steps; long noisy ones are drawn pale with their moving average on top.

    Args:
        title: shown above the chart by the page; also makes the ids inside the SVG unique.
        curves: beyond the first 8, colours return with dashes, then with dots.
        width: inches at 72 px.
        height: inches.
    """
    with matplotlib.rc_context({**_RC, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, curves, first_color=0)
        axes.set_xlabel("training step")
        return Chart(title, _svg(figure, title), _legend(curves))


def audit_chart(title: str, audit: Audit, *, width: float = 12.0, height: float = 3.5) -> Chart:
    """Training rewards on the left, the validation judge on the right, with a mark at the judge's best step."""
    with matplotlib.rc_context({**_RC, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        _draw(left, audit.rewards, first_color=0)
        _draw(right, audit.validation, first_color=len(audit.rewards))
        names = ("what training maximises: reward", "what it should improve: validation judge")
        for axes, name in zip((left, right), names, strict=True):
            axes.set_title(
                f"{name}, best at step {audit.best_step}" if axes is right else name, loc="left", fontsize=9.5
            )
            axes.set_xlabel("training step")
            axes.axvline(audit.best_step, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        return Chart(title, _svg(figure, title), _legend((*audit.rewards, *audit.validation)))


@dataclass(frozen=True)
class FittedCurve:
    """Measured points with their intervals, and the line that was fitted to them.

    Attributes:
        name: For the legend.
        points: (drift, value, lower end, upper end).
        line: (drift, value); empty where nothing could be fitted.
    """

    name: str
    points: tuple[tuple[float, float, float, float], ...]
    line: tuple[tuple[float, float], ...]


def drift_chart(
    title: str, series: Sequence[FittedCurve], *, mark: float, width: float = 8.8, height: float = 3.2
) -> Chart:
    """Scores against drift, with a dashed mark at one drift."""
    with matplotlib.rc_context({**_RC, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        for color, one in zip(_SERIES, series, strict=False):
            x, y, low, high = (list(column) for column in zip(*one.points, strict=True))
            axes.vlines(x, low, high, color=color, linewidth=1.2)
            axes.plot(x, y, color=color, marker="o", markersize=4, linestyle="")
            if one.line:
                axes.plot(*zip(*one.line, strict=True), color=color, linewidth=1.6)
        axes.axvline(mark, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel("drift from the start, root of nats")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        return Chart(title, _svg(figure, title), tuple((i + 1, one.name) for i, one in enumerate(series)))


def smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average over a twentieth of the curve; shorter windows at the ends."""
    half = max(1, len(values) // 40)
    return [
        sum(values[max(0, i - half) : i + half + 1]) / len(values[max(0, i - half) : i + half + 1])
        for i in range(len(values))
    ]


def _draw(axes: Axes, curves: Sequence[Curve], *, first_color: int) -> None:
    for index, curve in enumerate(curves):
        color, style = _look(first_color + index)
        noisy = _is_noisy(curve)
        if noisy:
            axes.plot(curve.steps, curve.values, color=color, linewidth=0.8, alpha=0.3)
        marker = "o" if len(curve.values) <= 12 else ""
        values = smooth(curve.values) if noisy else curve.values
        axes.plot(
            curve.steps, values, color=color, linestyle=style, linewidth=1.8, marker=marker, markersize=3.5
        )
    if _spans_decades(curves):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _is_noisy(curve: Curve) -> bool:
    """Long, and bending from step to step by more than a hundredth of its range."""
    values = curve.values
    if len(values) <= 30:
        return False
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return sum(bends) / len(bends) > 0.01 * (max(values) - min(values))


def _spans_decades(curves: Sequence[Curve]) -> bool:
    values = [value for curve in curves for value in curve.values]
    return bool(values) and min(values) > 0 and math.log10(max(values) / min(values)) > 2


def _legend(curves: Sequence[Curve]) -> tuple[tuple[int, str], ...]:
    names = [f"{curve.name}{_STYLES[_turn(i)][1]}" for i, curve in enumerate(curves)]
    return tuple((i % NUM_COLORS + 1, name) for i, name in enumerate(names))


def _look(index: int) -> tuple[str, str]:
    """Colour and line style of a series."""
    return _SERIES[index % NUM_COLORS], _STYLES[_turn(index)][0]


def _turn(index: int) -> int:
    """How often the colours have been used up; what comes after the last style looks like it."""
    return min(index // NUM_COLORS, len(_STYLES) - 1)


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)  # implied inside HTML
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    # Ids such as "axes_1" repeat in every drawing of a page and nothing refers to them.
    text = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick)_\d+"', "", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text
