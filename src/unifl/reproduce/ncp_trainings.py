"""What is trained for the claims of noise-conditioned perception (NCP, arXiv 2406.17636).

All learn from the same comparisons of the packaged model's own pictures. Compared methods get equal wall-clock: a step
of each was timed alone on one core (`STEP_SECONDS`), and each trains for as many steps as fit into `SECONDS`. Settings
were chosen with the validation judge on training prompts, in runs of another seed and on pairs of other prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from unifl.reproduce.parts import Look, PromptSet, Training

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
RATES, WEIGHTS = ("1e-3", "3e-3", "1e-2"), ("100", "1000", "10000")
"""The grid of CPO: learning rates, and weights of the winners' loss, which counts against 1250 of the preference."""
GRID_STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way of training both methods of a claim; each has training seeds and noise that no other has seen.

    Attributes:
        suffix: Of the names of its models.
        title: In a word.
        chosen: How it came about.
        rates: Learning rate of each method.
        changes: What differs from the recipe beside that.
        first_seed: See `Training`.
        prompts: See `Look`.
    """

    suffix: str
    title: str
    chosen: str
    rates: Mapping[str, str] = field(hash=False)
    changes: tuple[str, ...] = ()
    first_seed: int
    prompts: PromptSet = "fresh"

    def of(self, *names: str) -> tuple[str, ...]:
        """Names of its models."""
        return tuple(f"{name}{self.suffix}" for name in names)

    @property
    def look(self) -> Look:
        """How its models are judged."""
        return Look(num_steps=20, prompts=self.prompts)


_COSINE = "training.lr_scheduler=cosine"
SETTINGS = (
    Setting(
        suffix="",
        title="constant",
        chosen="a constant rate; of 1e-3, 3e-3 and 1e-2 the middle one was the best for both",
        rates=MappingProxyType({"dpo": "3e-3", "ncp-dpo": "3e-3"}),
        first_seed=0,
        prompts="held_out",
    ),
    Setting(
        suffix="-cosine",
        title="cosine",
        chosen="a rate that falls to 0 along a cosine, the best of six trials of each method: dpo with 2e-3, 4e-3, "
        "6e-3 (64.6 % against the base) and 8e-3, 4e-3 and 6e-3 with a mean logit of 2 in place of 0.5; ncp-dpo "
        "with 2e-3, 4e-3 (61.5 %) and 6e-3, and 4e-3 with the logit of 2, with the mid block, without division by the "
        "slope of the step",
        rates=MappingProxyType({"dpo": "6e-3", "ncp-dpo": "4e-3"}),
        changes=(_COSINE,),
        first_seed=3,
    ),
    Setting(
        suffix="-tight",
        title="tight",
        chosen="the same rates, with a beta that makes the mean logit 2 in place of 0.5 and so holds both more tightly "
        "to the reference",
        rates=MappingProxyType({"dpo": "6e-3", "ncp-dpo": "4e-3"}),
        changes=(_COSINE, "method.objective={kind: dpo, beta: auto, auto: {scale: 2}}"),
        first_seed=6,
    ),
)
DECIDES = SETTINGS[1]
"""The one that decides: the best of the trials."""
_METHODS = {"dpo": "dpo", "ncp-dpo": "ncp-dpo", "dpo-absolute": "dpo", "ncp-dpo-absolute": "ncp-dpo"}
"""Models of a setting, and whose steps they take."""

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


TUNINGS = (
    Setting(
        suffix="",
        title="constant",
        chosen="1e-4, constant after its warm-up, so that looks on the way are comparable",
        rates=MappingProxyType({"sft": "1e-4", "ncp-sft": "1e-4"}),
        first_seed=0,
        prompts="held_out",
    ),
    Setting(
        suffix="-cosine",
        title="cosine",
        chosen="3e-4, falling to 0 along a cosine: the best of five trials of each (62.4 and 60.5 % against the base; "
        "1e-3 and 3e-3 along a cosine and constant 1e-4 and 3e-4 were the others)",
        rates=MappingProxyType({"sft": "3e-4", "ncp-sft": "3e-4"}),
        changes=(_COSINE,),
        first_seed=3,
    ),
    Setting(
        suffix="-faster",
        title="faster",
        chosen="3e-4, constant after its warm-up",
        rates=MappingProxyType({"sft": "3e-4", "ncp-sft": "3e-4"}),
        first_seed=6,
    ),
)
"""Ways of fine-tuning on winners, in both spaces; seeds and prompts of each are those of one of the settings above."""
TUNING_DECIDES = TUNINGS[1]
"""The one that decides claim d."""
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

ONCE_STEPS, ONCE_RATE = 200, "4e-3"
"""Of every objective of claim f that has no other rate, falling to 0 along a cosine."""
OBJECTIVES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dpo": ("training.learning_rate=6e-3",),
        "ncp-dpo": (_NCP,),
        "ipo": ("method.objective={kind: ipo, beta: 1000}",),
        "hinge": ("method.objective={kind: hinge, beta: auto}",),
        "cpo": ("method.objective={kind: cpo, beta: auto, winner_weight: 1000}",),
        "sft": ("method.objective={kind: sft}", "training.learning_rate=3e-4"),
        "mapo": ("method.objective={kind: mapo, beta: 0.005}",),
        "pso": ("method.objective={kind: pso}",),
        "inpo": ("method.states={kind: inverted, steps: 5}",),
        "kto": (
            "training.learning_rate=2e-3",
            "method={kind: kto, beta: 5000}",
            "data={likes: {kind: preferences, path: $runs/preferences/likes.jsonl, "
            "encode: {folder: $runs/likes-cache, batch_size: 50, with_text: true}}}",
        ),
        "reward-weighted": (
            "training.learning_rate=1e-3",
            "method={kind: reward_weighted}",
            "data={scored: {kind: preferences, path: $runs/preferences/scored.jsonl, unpaired: true, "
            "encode: {folder: $runs/scored-cache, batch_size: 50, with_text: true}}}",
        ),
    }
)


def trainings() -> tuple[Training, ...]:
    """All of them."""
    return (
        *(training for setting in SETTINGS for training in _in_setting(setting)),
        *(training for setting in TUNINGS for training in _tuned(setting)),
        *_grid(),
        *(
            _of_setting(DECIDES, name, f"method.space={{kind: ncp, {change}}}", like="ncp-dpo")
            for name, change in ABLATIONS.items()
        ),
        *(_objective(name, *changes) for name, changes in OBJECTIVES.items()),
    )


def _in_setting(setting: Setting) -> tuple[Training, ...]:
    """Both methods, each on all comparisons and on absolute winners, and the model that they start from."""
    (base,) = setting.of("base")
    return (
        Training(name=base, first_seed=setting.first_seed, needs=("baselines",), looks=(setting.look,)),
        *(
            _of_setting(
                setting,
                f"{name}{setting.suffix}",
                *((_NCP,) if method == "ncp-dpo" else ()),
                *(() if name == method else _ABSOLUTE),
                like=method,
            )
            for name, method in _METHODS.items()
        ),
    )


def _of_setting(setting: Setting, name: str, *changes: str, like: str) -> Training:
    """A training of the time that all get."""
    return Training(
        name=name,
        recipe="dpo",
        changes=(*_for_seconds(like, setting.rates[like]), *changes, *setting.changes),
        first_seed=setting.first_seed,
        needs=("preferences",),
        looks=(setting.look,),
    )


def _for_seconds(method: str, rate: str) -> tuple[str, ...]:
    steps = steps_of(method)
    return (
        *_COMMON,
        f"training.max_train_steps={steps}",
        f"training.checkpointing_steps={steps}",
        f"training.learning_rate={rate}",
    )


def _tuned(setting: Setting) -> tuple[Training, ...]:
    """Fine-tuning on winners, looked at several times on its way."""
    found = []
    for name, changes in (("sft", ()), ("ncp-sft", (_NCP,))):
        at = checkpoints_of(name)
        looks = [replace(setting.look, name=f"at-{share:g}", checkpoint=at[share]) for share in SHARES[:-1]]
        kept = (
            "method.objective={kind: sft}",
            f"training.checkpointing_steps={at[SHARES[0]]}",
            "training.checkpoints_total_limit=null",
        )
        found.append(
            Training(
                name=f"{name}{setting.suffix}",
                recipe="dpo",
                changes=(*_for_seconds(name, setting.rates[name]), *changes, *kept, *setting.changes),
                first_seed=setting.first_seed,
                needs=("preferences",),
                looks=(*looks, setting.look),
            )
        )
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
    length = (f"training.max_train_steps={ONCE_STEPS}", f"training.checkpointing_steps={ONCE_STEPS}")
    return Training(
        name=f"once-{name}",
        recipe="dpo",
        changes=(*length, _COSINE, f"training.learning_rate={ONCE_RATE}", *data, *changes),
        needs=("preferences",),
        looks=(_LOOK,),
        once=True,
    )


def base_of(setting: Setting) -> str:
    """The model without training, with the seeds and prompts of a setting."""
    return next(one.of("base")[0] for one in SETTINGS if one.first_seed == setting.first_seed)


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
