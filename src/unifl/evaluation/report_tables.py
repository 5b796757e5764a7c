"""The figures of a report, ready to be laid out: metric rows, win rates, claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unifl.errors import UserError
from unifl.evaluation.compare import differences
from unifl.evaluation.model_result import ModelResult
from unifl.metrics.intervals import Interval
from unifl.metrics.result import Comparison, Metric


@dataclass(frozen=True)
class MetricText:
    """How a metric is shown: label, what it means, the block it stands in, whether more is better (None: neither)."""

    label: str
    meaning: str
    block: str
    higher: bool | None = True


_TEXTS = {
    "overall": MetricText("Overall", "mean of alignment fraction, structure, style and quality", "Summary"),
    "alignment": MetricText(
        "Alignment", "share of pictures in which everything asked for is right", "Prompt"
    ),
    "alignment_one_object": MetricText("Alignment, one object", "", "Prompt"),
    "alignment_two_object": MetricText("Alignment, two objects", "", "Prompt"),
    "alignment_three_object": MetricText("Alignment, three objects", "", "Prompt"),
    "alignment_fraction": MetricText(
        "Alignment fraction", "share of attributes and relations that are right", "Prompt"
    ),
    "structure": MetricText("Structure", "shapes are well formed", "Picture"),
    "style": MetricText("Style", "the named style is recognised", "Picture"),
    "color": MetricText("Color", "quality of the colours", "Quality"),
    "layout": MetricText("Layout", "quality of the composition", "Quality"),
    "lighting": MetricText("Lighting", "quality of the light", "Quality"),
    "detail": MetricText("Detail", "quality of fine detail", "Quality"),
    "quality": MetricText("Quality", "mean of the four above", "Quality"),
    "diversity": MetricText(
        "Seed diversity", "feature distance between pictures of one prompt", "Distribution"
    ),
}
_OF_SETS: dict[str, tuple[str, str, bool | None]] = {
    "frechet": ("Fréchet distance", "between features of these pictures and of the {} set", False),
    "kid": ("Kernel distance", "between features of these pictures and of the {} set", False),
    "cmmd": ("CMMD", "between features of these pictures and of the {} set", False),
    "precision": ("Precision", "share of these pictures among those of the {} set", True),
    "recall": ("Recall", "share of the {} set among these pictures", True),
    "density": ("Density", "how densely the {} set lies around these pictures", True),
    "coverage": ("Coverage", "share of the {} set with one of these pictures near", True),
    "vendi": ("Vendi score", "how many different pictures they amount to", None),
    "drift_features": ("Drift", "feature distance at equal prompt and noise", None),
    "drift_diversity_ratio": ("Ratio of diversity", "feature distance between pictures of one prompt", None),
}
"""By the beginning of names such as `kid_coco_on_dinov2`: label, meaning, whether more is better."""
_BLOCKS = ("Summary", "Prompt", "Picture", "Quality", "Distribution", "Other", "Groups")


@dataclass(frozen=True)
class Cell:
    """One value of the table; ``change`` is the signed difference to the base, ``verdict`` better, worse or same."""

    value: str
    interval: str
    best: bool = False
    change: str = ""
    change_interval: str = ""
    verdict: str = "same"


@dataclass(frozen=True)
class Row:
    """One metric over all models; None where a model lacks it."""

    text: MetricText
    n: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class WinBar:
    """Shares in percent of the width of a bar."""

    a: str
    b: str
    judge: str
    metric: str
    n: int
    wins: float
    ties: float
    losses: float
    rate: float
    low: float
    high: float
    verdict: str


def metric_text(name: str) -> MetricText:
    """How to show a metric, known or not."""
    if name in _TEXTS:
        return _TEXTS[name]
    for prefix, (label, meaning, higher) in _OF_SETS.items():
        if name.startswith(f"{prefix}_"):
            of = name.removeprefix(f"{prefix}_").replace("_", " ")
            reference = of.rpartition(" on ")[0] or of
            return MetricText(f"{label}, {of}", meaning.format(reference), "Distribution", higher)
    score, slash, group = name.partition("/")
    if slash:
        label = _TEXTS[score].label if score in _TEXTS else score.replace("_", " ")
        return MetricText(f"{label}, {group}", "", "Groups")
    return MetricText(name.replace("_", " "), "", "Other")


def base_of(model: str, models: Iterable[str]) -> str | None:
    """The model that another is compared with: the base at the same number of steps, else the first base.

    Ids are read as ``name@steps``; a base is called ``base``. None for a base itself, or when there is none.
    """
    bases = [other for other in models if other.split("@")[0] == "base"]
    if model in bases or not bases:
        return None
    steps = model.partition("@")[2]
    return next((other for other in bases if other.partition("@")[2] == steps), bases[0])


def metric_rows(
    metrics: Mapping[str, Mapping[str, Metric | Interval]], scores: Mapping[str, ModelResult]
) -> dict[str, list[Row]]:
    """Rows by block.

    Args:
        metrics: by model id, then by metric.
        scores: evaluated models; where both a model and its base are here, the cells show the paired
            difference.
    """
    changes = {model: _changes(model, metrics, scores) for model in metrics}
    names = list(dict.fromkeys(name for entry in metrics.values() for name in entry))
    known = {name: position for position, name in enumerate(_TEXTS)}
    names.sort(key=lambda name: known.get(name, len(known)))
    blocks: dict[str, list[Row]] = {block: [] for block in _BLOCKS}
    for name in names:
        text = metric_text(name)
        found = [entry.get(name) for entry in metrics.values()]
        values = [m.value for m in found if m is not None]
        decimals = _decimals(values)
        best = None
        if len(values) > 1 and text.higher is not None:
            best = f"{max(values) if text.higher else min(values):.{decimals}f}"
        cells = [
            None if m is None else _cell(m, text, decimals, changes[model].get(name), best)
            for model, m in zip(metrics, found, strict=True)
        ]
        counts = sorted({m.n for m in found if m is not None})
        blocks[text.block].append(
            Row(text, "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))), cells)
        )
    return {block: rows for block, rows in blocks.items() if rows}


def win_bars(comparisons: Iterable[Comparison]) -> list[WinBar]:
    """Bars in percent; ``verdict`` says whether the interval of the win rate lies above or below one half."""
    return [
        WinBar(
            a=c.a,
            b=c.b,
            judge=c.judge,
            metric=c.metric,
            n=c.n,
            wins=100 * (c.win - c.tie / 2),
            ties=100 * c.tie,
            losses=100 * c.lose,
            rate=100 * c.win,
            low=100 * c.low,
            high=100 * c.high,
            verdict="better" if c.low > 0.5 else "worse" if c.high < 0.5 else "same",
        )
        for c in comparisons
    ]


def _changes(
    model: str, metrics: Mapping[str, Mapping[str, Metric | Interval]], scores: Mapping[str, ModelResult]
) -> dict[str, Interval]:
    base = base_of(model, metrics)
    if base is None or model not in scores or base not in scores:
        return {}
    try:
        return differences(scores[model], scores[base])
    except UserError:  # evaluated on other prompts or seeds: there is no paired difference to show
        return {}


def _decimals(values: list[float]) -> int:
    """Three for scores in [0, 1]; otherwise as many as give the largest value about three digits."""
    largest = max(map(abs, values))
    if largest >= 0.1:
        return 3 if largest < 10 else 2 if largest < 100 else 1
    return 4


def _cell(
    m: Metric | Interval, text: MetricText, decimals: int, change: Interval | None, best: str | None
) -> Cell:
    number = _number(m.value, decimals)
    interval = f"{_number(m.low, decimals)} – {_number(m.high, decimals)}"
    is_best = best is not None and f"{m.value:.{decimals}f}" == best  # equal as shown is equally good
    if change is None:
        return Cell(number, interval, is_best)
    verdict = "same"
    if text.higher is not None and change.excludes(0.0):
        verdict = "better" if (change.value > 0) == text.higher else "worse"
    return Cell(
        number,
        interval,
        is_best,
        change=_number(change.value, decimals, sign="+"),
        change_interval=f"{_number(change.low, decimals, sign='+')} to {_number(change.high, decimals, sign='+')}",
        verdict=verdict,
    )


def _number(value: float, decimals: int, *, sign: str = "") -> str:
    return f"{value:{sign}.{decimals}f}".replace("-", "−")
