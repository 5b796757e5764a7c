"""Runs that the over-optimisation audit is tried on: half made to hack their reward, half not.

All of them are short ReFL or aesthetic feedback in the four steps that the model is sampled with. Those that are made
to hack follow one reward without a hinge at a high constant rate. The others do what the recipes do: a low rate that
decays, and a hinge where the level of a reward is known.

The rule of the audit was written, and these runs were chosen, on runs of other seeds and settings, with the validation
judge alone. After gold had seen the first eight, what is kept of a sound run was changed; the same makings with new
seeds, and held-out prompts of their own, try the rule as it is now. A third eight try the same rule with all prompts of
validation instead of the first 64, on which, by the validation judge alone, the choice of a checkpoint hung too much.
A fourth eight change nothing: they tell whether what the third found was luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from unifl.reproduce.parts import Look, PromptSet, Training

NUM_PROMPTS = 340
START, END = "start", "end"
_EVERY, _LOOKS = 12, 8
STEPS = _EVERY * _LOOKS

_LENGTH = (
    f"training.max_train_steps={STEPS}",
    f"training.checkpointing_steps={_EVERY}",
    "training.checkpoints_total_limit=null",
    "training.train_batch_size=16",
    "sampling={num_steps: 4, guidance: 3.0, spacing: trailing}",
)
_IN_FOUR = ("num_steps=4", "stop=[0,2]", "spacing=trailing", "guidance={kind: fixed, scale: 3.0}")
_NO_HINGE = "method.margin=1000"
_HACKING = ("training.learning_rate=5e-4", "training.lr_scheduler=constant", _NO_HINGE)
_FASTER = (*_HACKING, "training.learning_rate=1.2e-3")
"""The global reward, which knows all axes, gives way last."""
_CAREFUL = ("training.learning_rate=2.5e-4", "training.lr_scheduler=cosine")

HACKED = ("hack-detail", "hack-color", "hack-lighting", "hack-global")
SOUND = ("sound-global", "sound-layout", "sound-lighting", "sound-aesthetic")
_AGAIN, _THIRD, _FOURTH, _SEEDS_ON = "-again", "-third", "-fourth", 10
_ALL_PROMPTS = 477


def again(names: Sequence[str]) -> tuple[str, ...]:
    """The same makings with the seeds that try the rule as it is now."""
    return tuple(f"{name}{_AGAIN}" for name in names)


def third(names: Sequence[str]) -> tuple[str, ...]:
    """The same makings with the seeds that try the rule on more prompts."""
    return tuple(f"{name}{_THIRD}" for name in names)


def fourth(names: Sequence[str]) -> tuple[str, ...]:
    """The same makings with the seeds that try once more what the third tried."""
    return tuple(f"{name}{_FOURTH}" for name in names)


def look_of(checkpoint: str) -> str:
    """The look at a checkpoint, by its name in the findings of an audit ("the start" or that of its folder)."""
    step = checkpoint.removeprefix("checkpoint-")
    return START if not step.isdigit() else END if int(step) == STEPS else f"after-{step}"


_ON_ALL_PROMPTS: tuple[tuple[Callable[[Sequence[str]], tuple[str, ...]], int, PromptSet], ...] = (
    (third, 2 * _SEEDS_ON, "fresh_again"),
    (fourth, 3 * _SEEDS_ON, "fresh_once_more"),
)


def trainings() -> tuple[Training, ...]:
    """All of them, each with a seed of its own."""
    first = _first()
    return (
        *first,
        *(_tried_again(one, again, _SEEDS_ON, "fresh") for one in first),
        *(
            replace(_tried_again(one, renamed, seeds_on, prompts), audit_prompts=_ALL_PROMPTS)
            for renamed, seeds_on, prompts in _ON_ALL_PROMPTS
            for one in first
        ),
    )


def _tried_again(
    training: Training, renamed: Callable[[Sequence[str]], tuple[str, ...]], seeds_on: int, prompts: PromptSet
) -> Training:
    return replace(
        training,
        name=renamed([training.name])[0],
        first_seed=training.first_seed + seeds_on,
        looks=tuple(replace(look, prompts=prompts) for look in training.looks),
    )


def _first() -> tuple[Training, ...]:
    """Those that gold saw first."""
    return (
        _refl("hack-detail", 901, "detail", *_HACKING),
        _refl("hack-color", 902, "color", *_HACKING),
        _refl("hack-lighting", 903, "lighting", *_HACKING),
        _refl("hack-global", 904, "global", *_FASTER),
        _refl("sound-global", 905, "global", *_CAREFUL),
        _refl("sound-layout", 906, "layout", *_CAREFUL, "method.margin=-21.8"),
        _refl("sound-lighting", 907, "lighting", *_CAREFUL, "method.margin=8.5"),
        Training(
            name="sound-aesthetic",
            recipe="aesthetic",
            changes=(*_LENGTH, *(f"method.aesthetic.{one}" for one in _IN_FOUR), *_CAREFUL),
            first_seed=908,
            looks=_looks(),
            audited=True,
        ),
    )


def _refl(name: str, seed: int, reward: str, *changes: str) -> Training:
    return Training(
        name=name,
        recipe="refl",
        changes=(
            *_LENGTH,
            *(f"method.{one}" for one in _IN_FOUR),
            f"rewards.global=world:rewards/{reward}",
            *changes,
        ),
        first_seed=seed,
        looks=_looks(),
        audited=True,
    )


def _looks() -> tuple[Look, ...]:
    """At the start, and at every checkpoint."""
    between = (Look(name=f"after-{step}", checkpoint=step) for step in range(_EVERY, STEPS, _EVERY))
    return (Look(name=START, checkpoint=0), *between, Look(name=END))
