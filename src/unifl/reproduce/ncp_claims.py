"""The claims of noise-conditioned perception (NCP, arXiv 2406.17636) and of its relatives, and how each is decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unifl.reproduce.claims import Finding, Row, decided, win_row
from unifl.reproduce.figures import Figure, Table
from unifl.reproduce.ncp_trainings import (
    ABLATIONS,
    DECIDES,
    NUM_PROMPTS,
    OBJECTIVES,
    SECONDS,
    SEEDS,
    SETTINGS,
    SHARES,
    STEP_SECONDS,
    TUNING_DECIDES,
    TUNINGS,
    Setting,
    base_of,
    cells,
    steps_of,
    trainings,
)
from unifl.reproduce.paper import Decide, Paper
from unifl.reproduce.readings import of_preference

_METRICS = ("overall", "alignment", "structure", "style", "quality", "high_frequency")
_WORSE = 0.47
"""Lower bound of a win rate that still counts as not worse."""
_VALIDATION = "validation"
_ORDER = (DECIDES, *(setting for setting in SETTINGS if setting is not DECIDES))
"""The setting that decides, then the others."""


def faster(table: Table, prepared: Path) -> Finding:
    """Claim a: NCP-DPO against DPO at equal time, in settings of which one decides."""
    rates = {setting: table.wins(*setting.of("ncp-dpo", "dpo")) for setting in _ORDER}
    models = DECIDES.of("base", "dpo", "ncp-dpo")
    return decided(
        "a", "In the embedding space of the U-Net, DPO does more in the same time",
        paper="54 to 57 % on all pairs, 64 to 71 % on absolute winners (PickScore and HPSv2, table 1)",
        rule="the lower bound of ncp-dpo's win rate on all comparisons is above 50 %",
        holds=rates[DECIDES].low > 0.5,
        rows=[row for setting in _ORDER for row in _faster_rows(table, setting, rates[setting])],
        notes=(
            f"{_equal_time('dpo', 'ncp-dpo')} {_settings(lambda setting: rates[setting].low > 0.5)}"
            f"{_how_good_it_is(table)}"
        ),
        pictures={f"{name}-end": title for name, title in zip(models, ("base", "dpo", "ncp-dpo"), strict=True)},
        prompts=DECIDES.prompts,
        **table.size(*models),
    )  # fmt: skip


def _how_good_it_is(table: Table) -> str:
    """What to know of the method that loses, where that is no better than the base itself."""
    if table.wins(*DECIDES.of("dpo", "base")).low > 0.5:
        return ""
    best = max(_ORDER, key=lambda setting: table.wins(*setting.of("dpo", "base")).low)
    dpo, ncp = (table.wins(*best.of(name, "base")) for name in ("dpo", "ncp-dpo"))
    return (
        f" Mind what loses: in {DECIDES.title} the rate that the validation judge chose for dpo on training prompts "
        f"does not beat the base on held-out ones by gold. Where dpo does best, in {best.title}, it beats the base in "
        f"{dpo.value:.1%} of pairs and ncp-dpo in {ncp.value:.1%}."
    )


def _faster_rows(table: Table, setting: Setting, rate: Figure) -> list[Row]:
    """The lines of one setting."""
    (base,) = setting.of("base")
    methods = ("dpo", "ncp-dpo", "dpo-absolute", "ncp-dpo-absolute")
    filtered = table.wins(*setting.of("ncp-dpo-absolute", "dpo-absolute"))
    models = dict(zip(methods, setting.of(*methods), strict=True))
    return [
        win_row(f"gold, {setting.title}: ncp-dpo beats dpo, all comparisons", rate),
        win_row(f"gold, {setting.title}: ncp-dpo beats dpo, absolute winners", filtered),
        *(
            win_row(f"gold, {setting.title}: {name} beats the base", table.wins(model, base))
            for name, model in models.items()
        ),
        *(
            Row(what=f"{metric}, {setting.title}: {name} - base", figure=table.change(metric, model, base))
            for metric in _METRICS
            for name, model in models.items()
        ),
    ]


def filtered(table: Table, prepared: Path) -> Finding:
    """Claim b: a tenth of the data, of absolute winners alone, is not worse; in settings of which one decides."""
    rates = {
        setting: {name: table.wins(*setting.of(f"{name}-absolute", name)) for name in ("ncp-dpo", "dpo")}
        for setting in _ORDER
    }
    holds = {setting: all(rate.low >= _WORSE for rate in rates[setting].values()) for setting in _ORDER}
    return decided(
        "b", "Absolute winners alone, a fraction of the data, are not worse than all comparisons",
        paper="better for both, from a tenth of Pick-a-Pic v2 (table 1)",
        rule="for both methods the lower bound of the win rate of absolute winners over all data is at least 47 %",
        holds=holds[DECIDES],
        rows=[
            win_row(f"gold, {setting.title}: {name}, absolute winners beat all comparisons", rate)
            for setting in _ORDER
            for name, rate in rates[setting].items()
        ],
        notes=_settings(lambda setting: holds[setting]),
        **table.size(*DECIDES.of("ncp-dpo", "ncp-dpo-absolute")),
    )  # fmt: skip


def _settings(holds: Callable[[Setting], bool]) -> str:
    """What each setting is, and what comes of the claim in it."""
    told = "; ".join(
        f"{setting.title}: {setting.chosen} (the claim {'holds' if holds(setting) else 'does not hold'})"
        for setting in SETTINGS
    )
    return (
        f"{len(SETTINGS)} settings: {told}. The first was measured before the others were "
        f"thought of, and the spread of its seeds is large. The others were fixed together before gold saw a run of "
        f"either, on training seeds and held-out prompts that nobody had looked at; {DECIDES.title} decides."
    )


def stable(table: Table, prepared: Path) -> Finding:
    """Claim c: without a reference, fewer settings go wrong in the embedding space."""
    lost: dict[str, list[str]] = {}
    rows = []
    for method in ("cpo", "ncp-cpo"):
        rates = {cell: table.wins(f"{method}-{cell}", "base") for cell in cells()}
        lost[method] = [cell for cell, rate in rates.items() if rate.value < 0.5]
        rows += [
            win_row(f"gold: {method}, rate and weight {cell}, beats the base", rate)
            for cell, rate in rates.items()
        ]
    best = {method: max(_of_grid(table, method), key=lambda one: one.value) for method in lost}
    number = len(lost["cpo"]) - len(lost["ncp-cpo"])
    return decided(
        "c", "Without a reference, the embedding space keeps more settings from going wrong",
        paper="CPO diverges, NCP-CPO does not (section 6)",
        rule="of nine settings each, fewer of ncp-cpo than of cpo end below the base (win rate below 50 %) or diverge",
        holds=number > 0, rows=rows,
        notes=(
            f"Below the base end {len(lost['cpo'])} of 9 settings of cpo ({', '.join(lost['cpo']) or 'none'}) and "
            f"{len(lost['ncp-cpo'])} of ncp-cpo ({', '.join(lost['ncp-cpo']) or 'none'}). The best setting of cpo wins "
            f"{best['cpo'].value:.1%}, that of ncp-cpo {best['ncp-cpo'].value:.1%}."
        ),
        **table.size(*(f"cpo-{cell}" for cell in cells())),
    )  # fmt: skip


def _of_grid(table: Table, method: str) -> list[Figure]:
    return [table.wins(f"{method}-{cell}", "base") for cell in cells()]


def tuned(table: Table, prepared: Path) -> Finding:
    """Claim d: fine-tuning on winners reaches its best in less time, in settings of which one decides."""
    others = (setting for setting in TUNINGS if setting is not TUNING_DECIDES)
    found = {setting: _race(table, setting) for setting in (TUNING_DECIDES, *others)}
    told = "; ".join(f"{setting.title}: {setting.chosen}; {race.said}" for setting, race in found.items())
    return decided(
        "d", "In the embedding space, fine-tuning on winners learns in less time",
        paper="PickScore against time (section 6)",
        rule="ncp-sft reaches the best win rate of sft over the base, by the validation judge, in less time than sft",
        holds=found[TUNING_DECIDES].holds,
        rows=[row for setting in found for row in _tuned_rows(table, setting)],
        curves={
            f"{setting.title}, validation judge: wins over the base over seconds of training": race.curves
            for setting, race in found.items()
        },
        notes=(
            f"{_equal_time('sft', 'ncp-sft')} {len(TUNINGS)} settings: {told}. The first was measured before the "
            f"others were fixed, which have training seeds and held-out prompts of their own; "
            f"{TUNING_DECIDES.title} decides."
        ),
        **table.size(*TUNING_DECIDES.of("sft", "ncp-sft")),
    )  # fmt: skip


@dataclass(frozen=True)
class _Race:
    """Win rates over the base over time, and who is where first.

    Attributes:
        curves: By method.
        best: Seconds after which sft is at its best.
        reached: Seconds after which ncp-sft is as good; None where it never is.
    """

    curves: dict[str, list[tuple[float, float, float, float]]]
    best: float
    reached: float | None

    @property
    def holds(self) -> bool:
        """Whether ncp-sft is there sooner."""
        return self.reached is not None and self.reached < self.best

    @property
    def said(self) -> str:
        """The same in words."""
        end = "is not reached by ncp-sft"
        if self.reached is not None:
            end = f"is reached by ncp-sft after {self.reached:.0f} s"
        return f"the best of sft, after {self.best:.0f} s, {end}"


def _race(table: Table, setting: Setting) -> _Race:
    curves = {
        name: _wins_over_time(table, model, base_of(setting))
        for name, model in zip(("sft", "ncp-sft"), setting.of("sft", "ncp-sft"), strict=True)
    }
    best = max(y for _, y, _, _ in curves["sft"])
    first = {name: [x for x, y, _, _ in points if y >= best] for name, points in curves.items()}
    return _Race(curves, min(first["sft"]), min(first["ncp-sft"], default=None))


def _tuned_rows(table: Table, setting: Setting) -> list[Row]:
    """The lines of one setting."""
    sft, ncp = models = setting.of("sft", "ncp-sft")
    base, title = base_of(setting), setting.title
    names = ("sft", "ncp-sft")
    return [
        win_row(
            f"validation, {title}: ncp-sft beats sft, both at the end",
            table.wins(ncp, sft, metric=_VALIDATION),
        ),
        win_row(f"gold, {title}: ncp-sft beats sft, both at the end", table.wins(ncp, sft)),
        *(
            win_row(f"gold, {title}: {name} beats the base", table.wins(model, base))
            for name, model in zip(names, models, strict=True)
        ),
        *(
            Row(
                what=f"validation, {title}, overall: {name} - base",
                figure=table.change(_VALIDATION, model, base),
            )
            for name, model in zip(names, models, strict=True)
        ),
    ]


_OVER_TIME = {share * SECONDS: "end" if share == 1 else f"at-{share:g}" for share in SHARES}
"""Looks by seconds of training."""


def _wins_over_time(table: Table, model: str, base: str) -> list[tuple[float, float, float, float]]:
    found = [
        (seconds, table.wins(model, base, look_a=look, metric=_VALIDATION))
        for seconds, look in _OVER_TIME.items()
    ]
    return [(seconds, figure.value, figure.low, figure.high) for seconds, figure in found]


def ablated(table: Table, prepared: Path) -> Finding:
    """Claim e: which part of the embedding space does it."""
    base, ours = DECIDES.of("base", "ncp-dpo")
    control = table.wins(ours, "ncp-random")
    return decided(
        "e", "The layer, the precision and the training of the encoder: what matters",
        paper="the paper shows none; layer and precision are open there",
        rule="ncp-dpo beats the control whose encoder has random weights (lower bound above 50 %); the rest is a table",
        holds=control.low > 0.5,
        rows=[
            win_row("gold: ncp-dpo beats ncp-random", control),
            *(win_row(f"gold: {name} beats the base", table.wins(name, base)) for name in (ours, *ABLATIONS)),
            *(win_row(f"gold: ncp-dpo beats {name}", table.wins(ours, name)) for name in ABLATIONS),
        ],
        notes=f"All in the setting \"{DECIDES.title}\" of claim a.",
        **table.size(ours, *ABLATIONS),
    )  # fmt: skip


def objectives(table: Table, prepared: Path) -> Finding:
    """Claim f: every objective raises the validation judge's preference."""
    rates = {name: table.wins(f"once-{name}", "base", metric=_VALIDATION) for name in OBJECTIVES}
    failing = [name for name, rate in rates.items() if rate.low <= 0.5]
    gold = {name: table.wins(f"once-{name}", "base") for name in OBJECTIVES}
    worst = min(rates, key=lambda name: rates[name].low)
    return decided(
        "f", "Every objective raises the judge's preference over the base",
        paper="each its own",
        rule="for every objective the lower bound of the validation judge's win rate over the base is above 50 %",
        holds=not failing,
        rows=[
            win_row(f"validation: {worst}, the least, beats the base", rates[worst]),
            *(win_row(f"validation: {name} beats the base", rate) for name, rate in rates.items()),
            *(win_row(f"gold: {name} beats the base", rate) for name, rate in gold.items()),
        ],
        notes=f"Not raised: {', '.join(failing) or 'none'}. Each was trained once.",
        **table.size(*(f"once-{name}" for name in OBJECTIVES)),
    )  # fmt: skip


def _equal_time(*methods: str) -> str:
    each = ", ".join(f"{name} {steps_of(name)} steps of {STEP_SECONDS[name]:.2f} s" for name in methods)
    return (
        f"Each trains for {SECONDS} s on one core: {each}. Both methods got the same trials by the validation judge, "
        "on training prompts and in runs of another seed."
    )


CLAIMS: dict[str, Decide] = {
    "a": faster,
    "b": filtered,
    "c": stable,
    "d": tuned,
    "e": ablated,
    "f": objectives,
}
_DPO = tuple(
    name
    for setting in SETTINGS
    for name in setting.of("base", "dpo", "ncp-dpo", "dpo-absolute", "ncp-dpo-absolute")
)
NEEDED: dict[str, tuple[str, ...]] = {
    "a": _DPO,
    "b": _DPO,
    "c": ("base", *(f"{method}-{cell}" for method in ("cpo", "ncp-cpo") for cell in cells())),
    "d": tuple(name for setting in TUNINGS for name in (base_of(setting), *setting.of("sft", "ncp-sft"))),
    "e": (*DECIDES.of("base", "ncp-dpo"), *ABLATIONS),
    "f": ("base", *(f"once-{name}" for name in OBJECTIVES)),
}
PAPER = Paper(
    name="ncp",
    title="Preference optimisation in the embedding space of the U-Net, claim by claim",
    trainings=trainings,
    claims=CLAIMS,
    needed=NEEDED,
    seeds=SEEDS,
    num_prompts=NUM_PROMPTS,
    readings=of_preference,
)
