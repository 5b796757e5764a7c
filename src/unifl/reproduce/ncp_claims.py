"""The claims of noise-conditioned perception (NCP, arXiv 2406.17636) and of its relatives, and how each is decided."""

from __future__ import annotations

from pathlib import Path

from unifl.reproduce.claims import Curves, Finding, Row, decided, win_row
from unifl.reproduce.figures import Figure, Table
from unifl.reproduce.ncp_trainings import (
    ABLATIONS,
    CHOSEN,
    NUM_PROMPTS,
    OBJECTIVES,
    SECONDS,
    SEEDS,
    SHARES,
    STEP_SECONDS,
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


def faster(table: Table, prepared: Path) -> Finding:
    """Claim a: NCP-DPO against DPO at equal time."""
    everything = table.wins("ncp-dpo", "dpo")
    filtered = table.wins("ncp-dpo-absolute", "dpo-absolute")
    models = ("dpo", "ncp-dpo", "dpo-absolute", "ncp-dpo-absolute")
    rows = [
        win_row("gold: ncp-dpo beats dpo, all comparisons", everything),
        win_row("gold: ncp-dpo beats dpo, absolute winners", filtered),
        *(win_row(f"gold: {name} beats the base", table.wins(name, "base")) for name in models),
        *(
            Row(what=f"{metric}: {name} - base", figure=table.change(metric, name, "base"))
            for metric in _METRICS
            for name in models
        ),
    ]
    return decided(
        "a", "In the embedding space of the U-Net, DPO does more in the same time",
        paper="54 to 57 % on all pairs, 64 to 71 % on absolute winners (PickScore and HPSv2, table 1)",
        rule="the lower bound of ncp-dpo's win rate on all comparisons is above 50 %",
        holds=everything.low > 0.5, rows=rows, notes=_equal_time("dpo", "ncp-dpo"),
        pictures={"base-end": "base", "dpo-end": "dpo", "ncp-dpo-end": "ncp-dpo"},
        **table.size("dpo", "ncp-dpo"),
    )  # fmt: skip


def filtered(table: Table, prepared: Path) -> Finding:
    """Claim b: a tenth of the data, of absolute winners alone, is not worse."""
    rates = {name: table.wins(f"{name}-absolute", name) for name in ("ncp-dpo", "dpo")}
    return decided(
        "b", "Absolute winners alone, a fraction of the data, are not worse than all comparisons",
        paper="better for both, from a tenth of Pick-a-Pic v2 (table 1)",
        rule="for both methods the lower bound of the win rate of absolute winners over all data is at least 47 %",
        holds=all(rate.low >= _WORSE for rate in rates.values()),
        rows=[win_row(f"gold: {name}, absolute winners beat all comparisons", rate) for name, rate in rates.items()],
        **table.size("ncp-dpo", "ncp-dpo-absolute"),
    )  # fmt: skip


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
    """Claim d: fine-tuning on winners reaches its best in less time."""
    curves = {name: _over_time(table, name) for name in ("sft", "ncp-sft")}
    best = max(y for _, y, _, _ in curves["sft"])
    when = {
        name: min((x for x, y, _, _ in points if y >= best), default=None) for name, points in curves.items()
    }
    assert when["sft"] is not None
    reached = when["ncp-sft"]
    ahead = table.change(_VALIDATION, "ncp-sft", "sft")
    said = "is not reached by ncp-sft" if reached is None else f"is reached by ncp-sft after {reached:.0f} s"
    drawn: Curves = {"validation judge: overall over seconds of training": curves}
    return decided(
        "d", "In the embedding space, fine-tuning on winners learns in less time",
        paper="PickScore against time (section 6)",
        rule="ncp-sft reaches the best validation score of sft in less time than sft",
        holds=reached is not None and reached < when["sft"],
        rows=[
            Row(what="validation: ncp-sft - sft, both at the end", figure=ahead),
            *(Row(what=f"validation: {name} - base", figure=table.change(_VALIDATION, name, "base"))
              for name in ("sft", "ncp-sft")),
            *(win_row(f"gold: {name} beats the base", table.wins(name, "base")) for name in ("sft", "ncp-sft")),
        ],
        curves=drawn,
        notes=f"The best of sft, after {when['sft']:.0f} s, {said}. {_equal_time('sft', 'ncp-sft')}",
        **table.size("sft", "ncp-sft"),
    )  # fmt: skip


def _over_time(table: Table, name: str) -> list[tuple[float, float, float, float]]:
    looks = {share: "end" if share == 1 else f"at-{share:g}" for share in SHARES}
    found = [(share * SECONDS, table.mean(name, _VALIDATION, look)) for share, look in looks.items()]
    return [(seconds, figure.value, figure.low, figure.high) for seconds, figure in found]


def ablated(table: Table, prepared: Path) -> Finding:
    """Claim e: which part of the embedding space does it."""
    names = ("ncp-dpo", *ABLATIONS)
    rows = [
        *(win_row(f"gold: {name} beats the base", table.wins(name, "base")) for name in names),
        *(win_row(f"gold: ncp-dpo beats {name}", table.wins("ncp-dpo", name)) for name in ABLATIONS),
    ]
    control = table.wins("ncp-dpo", "ncp-random")
    return decided(
        "e", "The layer, the precision and the training of the encoder: what matters",
        paper="the paper shows none; layer and precision are open there",
        rule="ncp-dpo beats the control whose encoder has random weights (lower bound above 50 %); the rest is a table",
        holds=control.low > 0.5, rows=[win_row("gold: ncp-dpo beats ncp-random", control), *rows],
        **table.size("ncp-dpo", *ABLATIONS),
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
        f"Each trains for {SECONDS} s on one core: {each}. Rate and beta of each method are the best of the same "
        f"number of trials by the validation judge on training prompts, in runs of another seed: {CHOSEN}."
    )


CLAIMS: dict[str, Decide] = {
    "a": faster,
    "b": filtered,
    "c": stable,
    "d": tuned,
    "e": ablated,
    "f": objectives,
}
_DPO = ("base", "dpo", "ncp-dpo", "dpo-absolute", "ncp-dpo-absolute")
NEEDED: dict[str, tuple[str, ...]] = {
    "a": _DPO,
    "b": _DPO,
    "c": ("base", *(f"{method}-{cell}" for method in ("cpo", "ncp-cpo") for cell in cells())),
    "d": ("base", "sft", "ncp-sft"),
    "e": ("base", "ncp-dpo", *ABLATIONS),
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
