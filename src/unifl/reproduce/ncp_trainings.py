"""What is trained for the claims of noise-conditioned perception (NCP, arXiv 2406.17636).

All learn from the same comparisons of the packaged model's own pictures. Compared methods get equal wall-clock: a step
of each was timed alone on one core (`STEP_SECONDS`), and each trains for as many steps as fit into `SECONDS`. Settings
were chosen with the validation judge on training prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType

from unifl.reproduce.parts import Look, Training

SEEDS = (0, 1, 2)
NUM_PROMPTS = 680
"""Two thousand pictures over the three seeds."""
SECONDS = 120
"""Of training, for methods that are compared."""
STEP_SECONDS: Mapping[str, float] = MappingProxyType(
    {"dpo": 0.57, "ncp-dpo": 0.72, "sft": 0.265, "ncp-sft": 0.325}
)
"""A step of 32 pairs on one core: processor time, median of eight, all four in turns."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the time, at which fine-tuning is looked at."""
RATES, WEIGHTS = ("3e-4", "1e-3", "3e-3"), ("0.1", "1", "10")
"""The grid of CPO: learning rates, and weights of the winners' loss."""
GRID_STEPS = 60

_NCP = "method.space={kind: ncp}"
_ABSOLUTE = (
    "data.pairs.filters={absolute_winners: true, latest_losers: true}",
    "data.pairs.encode.folder=$runs/absolute-cache",
)
"""Pictures that won all their comparisons, each against the one that it met last: a tenth of the data."""
_LOOK = Look(num_steps=20)
_COMMON = (
    "data.pairs.path=$runs/preferences",
    "data.pairs.encode.folder=$runs/preferences-cache",
)


CHOSEN = "of the rates 1e-3, 3e-3 and 1e-2 the middle one for both; beta follows from the scale of the logits"
"""What came of the trials, in words."""
_RATE: Mapping[str, str] = MappingProxyType(
    {"dpo": "3e-3", "ncp-dpo": "3e-3", "sft": "1e-3", "ncp-sft": "1e-3"}
)
ABLATIONS: Mapping[str, str] = MappingProxyType(
    {
        "ncp-mid": "layer: mid",
        "ncp-all": "layer: all_down",
        "ncp-renoise": "states: renoise",
        "ncp-bf16": "precision: bfloat16",
        "ncp-random": "encoder: random",
    }
)
"""What differs from ncp-dpo."""


OBJECTIVES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dpo": (),
        "ncp-dpo": (_NCP,),
        "ipo": ("method.objective={kind: ipo, beta: 1000}",),
        "hinge": ("method.objective={kind: hinge, beta: auto}",),
        "cpo": ("method.objective={kind: cpo, beta: auto, winner_weight: 1}",),
        "sft": ("method.objective={kind: sft}",),
        "mapo": ("method.objective={kind: mapo}",),
        "pso": ("method.objective={kind: pso}",),
        "inpo": ("method.states={kind: inverted, steps: 5}",),
        "kto": (
            "method={kind: kto, beta: 10000}",
            "data={likes: {kind: preferences, path: $runs/preferences/likes.jsonl, "
            "encode: {folder: $runs/likes-cache, batch_size: 50, with_text: true}}}",
        ),
        "reward-weighted": (
            "method={kind: reward_weighted}",
            "data={scored: {kind: preferences, path: $runs/preferences/scored.jsonl, unpaired: true, "
            "encode: {folder: $runs/scored-cache, batch_size: 50, with_text: true}}}",
        ),
    }
)


def trainings() -> tuple[Training, ...]:
    """All of them."""
    return (
        Training(name="base", needs=("baselines",), looks=(_LOOK,)),
        _trained("dpo"),
        _trained("ncp-dpo", _NCP),
        _trained("dpo-absolute", *_ABSOLUTE, like="dpo"),
        _trained("ncp-dpo-absolute", _NCP, *_ABSOLUTE, like="ncp-dpo"),
        *_tuned(),
        *_grid(),
        *(
            _trained(name, f"method.space={{kind: ncp, {change}}}", like="ncp-dpo")
            for name, change in ABLATIONS.items()
        ),
        *(_objective(name, *changes) for name, changes in OBJECTIVES.items()),
    )


def _trained(
    name: str, *changes: str, like: str | None = None, looks: tuple[Look, ...] = (_LOOK,)
) -> Training:
    """A training of the time that all get, with the rate of its method."""
    method = like or name
    return Training(
        name=name,
        recipe="dpo",
        changes=(
            *_COMMON,
            f"training.max_train_steps={steps_of(method)}",
            f"training.checkpointing_steps={steps_of(method)}",
            f"training.learning_rate={_RATE[method]}",
            *changes,
        ),
        needs=("preferences",),
        looks=looks,
    )


def _tuned() -> tuple[Training, ...]:
    """Fine-tuning on winners, looked at several times on its way."""
    found = []
    for name, changes in (("sft", ()), ("ncp-sft", (_NCP,))):
        at = checkpoints_of(name)
        looks = [Look(name=f"at-{share:g}", num_steps=20, checkpoint=at[share]) for share in SHARES[:-1]]
        kept = (
            "method.objective={kind: sft}",
            f"training.checkpointing_steps={at[SHARES[0]]}",
            "training.checkpoints_total_limit=null",
        )
        found.append(_trained(name, *changes, *kept, looks=(*looks, _LOOK)))
    return tuple(found)


def _grid() -> tuple[Training, ...]:
    """CPO without a reference, in both spaces, over rates and weights."""
    return tuple(
        Training(
            name=f"{method}-{cell}",
            recipe="dpo",
            changes=(
                *_COMMON,
                f"training.max_train_steps={GRID_STEPS}",
                f"training.checkpointing_steps={GRID_STEPS}",
                f"training.learning_rate={rate}",
                f"method.objective={{kind: cpo, beta: auto, winner_weight: {weight}}}",
                *space,
            ),
            needs=("preferences",),
            looks=(_LOOK,),
        )
        for method, space in (("cpo", ()), ("ncp-cpo", (_NCP,)))
        for cell, (rate, weight) in cells().items()
    )


def _objective(name: str, *changes: str) -> Training:
    """An objective with settings of its own, trained once."""
    data = () if any(change.startswith("data=") for change in changes) else _COMMON
    return Training(
        name=f"once-{name}",
        recipe="dpo",
        changes=(*changes, *data, "training.max_train_steps=200", "training.checkpointing_steps=200"),
        needs=("preferences",),
        looks=(_LOOK,),
        once=True,
    )


def steps_of(method: str) -> int:
    """Training steps that fit into the time."""
    return round(SECONDS / STEP_SECONDS[method] / len(SHARES)) * len(SHARES)


def checkpoints_of(method: str) -> dict[float, int]:
    """The step at each share of the time; checkpoints lie at multiples of the first."""
    quarter = steps_of(method) // len(SHARES)
    return {share: quarter * number for number, share in enumerate(SHARES, start=1)}


def cells() -> dict[str, tuple[str, str]]:
    """Names of the grid's cells, with rate and weight."""
    return {f"{rate}-{weight}": (rate, weight) for rate, weight in itertools.product(RATES, WEIGHTS)}
