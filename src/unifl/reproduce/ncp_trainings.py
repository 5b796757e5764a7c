"""What is trained for the claims of noise-conditioned perception; settings were chosen with the validation judge on
training prompts.

All learn from the same comparisons of the packaged model's own pictures. Compared methods get equal wall-clock: a step of
each was timed alone on one core (`STEP_SECONDS`), and each trains for as many steps as fit into `SECONDS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType

from unifl.reproduce.parts import Look, Training

SEEDS = (0, 1, 2)
NUM_PROMPTS = 680
"""Two thousand pictures over the three seeds."""
SECONDS = 90
"""Of training, for methods that are compared."""
STEP_SECONDS: Mapping[str, float] = MappingProxyType(
    {"dpo": 0.45, "ncp-dpo": 0.75, "sft": 0.20, "ncp-sft": 0.35}
)
"""A step of 32 pairs on one core."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the time, at which fine-tuning is looked at."""
RATES, WEIGHTS = ("3e-4", "1e-3", "3e-3"), ("0.1", "1", "10")
"""The grid of CPO: learning rates, and weights of the winners' loss."""
GRID_STEPS = 60

_NCP = "method.space={kind: ncp}"
_ABSOLUTE = "data.pairs.filters={absolute_winners: true}"
_LOOK = Look(num_steps=20)
_COMMON = (
    "data.pairs.path=$runs/preferences",
    "data.pairs.encode.folder=$runs/preferences-cache",
)


def steps_of(method: str) -> int:
    """Training steps that fit into the time."""
    return round(SECONDS / STEP_SECONDS[method])


def checkpoints_of(method: str) -> dict[float, int]:
    """The step at each share of the time."""
    return {share: round(share * steps_of(method)) for share in SHARES}


def cells() -> dict[str, tuple[str, str]]:
    """Names of the grid's cells, with rate and weight."""
    return {f"{rate}-{weight}": (rate, weight) for rate, weight in itertools.product(RATES, WEIGHTS)}


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
            "data={likes: {kind: preferences, path: $runs/preferences/likes.jsonl}}",
        ),
        "reward-weighted": (
            "method={kind: reward_weighted}",
            "data={scored: {kind: preferences, path: $runs/preferences/scored.jsonl, unpaired: true}}",
        ),
    }
)
