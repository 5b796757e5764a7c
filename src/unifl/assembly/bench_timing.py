"""Interleaved pairs of timings: a training step of the loop, and the same evaluations run bare."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from unifl.assembly.bench_bare import prepare_bare
from unifl.errors import UserError
from unifl.methods.refl import ReFL
from unifl.methods.unifl import UniFL
from unifl.training.batches import Layout, draw_micro_batches
from unifl.training.config import TrainingConfig
from unifl.training.loop import StepResult, train

WARM_UP = 2
"""Pairs before the clock starts; in them the evaluations of both sides are counted as well."""

_NEVER = 10**9


@dataclass
class Pair:
    """One step both ways; seconds.

    Attributes:
        step: Number of the training step, from 1.
        stops: Steps that were left after the graded evaluation, by rollout: how much work it was.
        whole: The step, as the loop times it.
        optimizer: The part of it that optimisers took.
        bare: Its evaluations run bare.
    """

    step: int
    stops: dict[str, int]
    whole: float
    optimizer: float
    bare: float

    @property
    def ratio(self) -> float:
        """The step without optimisers, over its evaluations run bare."""
        return (self.whole - self.optimizer) / self.bare


@dataclass
class Timings:
    """What was found for one case.

    Attributes:
        pairs: In order.
        beyond: Calls of elementary modules that a step makes and its bare counterpart does not, per step.
    """

    pairs: list[Pair] = field(default_factory=list)
    beyond: int = 0

    def ratio(self) -> tuple[float, float, float]:
        """Median of the pairs' ratios, with a 95 % percentile bootstrap interval over pairs."""
        ratios = [pair.ratio for pair in self.pairs]
        return median_interval(ratios)

    def median(self, name: str) -> float:
        """Median over pairs of `whole`, `optimizer` or `bare`, in seconds."""
        return statistics.median(getattr(pair, name) for pair in self.pairs)


def time_pairs(method: ReFL | UniFL, *, batch_size: int, pairs: int, seed: int, folder: Path) -> Timings:
    """Train in the loop and run each step's evaluations bare beside it, in turns of who goes first.

    Args:
        method: What trains, with all its prompts encoded.
        batch_size: Rows of a step.
        pairs: Pairs that are timed, after `WARM_UP` others.
        seed: Of rows, noise and stops.
        folder: Where the loop writes its run.

    Raises:
        UserError: The bare side evaluates something that the step does not.
    """
    config = TrainingConfig(
        max_train_steps=_NEVER,
        checkpointing_steps=_NEVER,
        checkpoint_on_interrupt=False,
        train_batch_size=batch_size,
        learning_rate=1e-6,
        seed=seed,
    )
    layout, timings = Layout(batch_size, 1), Timings()
    steps = train(method, config, folder)
    with _optimizer_clock() as clock, _settled_garbage():
        for number in range(WARM_UP + pairs):
            bare = prepare_bare(method, draw_micro_batches(method, layout, seed=seed, step=number)[0])
            if number < WARM_UP:
                timings.beyond = max(timings.beyond, _count_both(lambda: next(steps), bare))
                continue
            clock.seconds = 0.0
            bare_first = number % 2 == 1
            seconds = _seconds(bare) if bare_first else 0.0
            result = next(steps)
            if not bare_first:
                seconds = _seconds(bare)
            timings.pairs.append(Pair(number + 1, _stops(result), result.seconds, clock.seconds, seconds))
    steps.close()  # type: ignore[attr-defined]
    return timings


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median of paired measurements, and the ends of its 95 % percentile bootstrap interval."""
    drawn = stats.bootstrap(
        (np.asarray(values),), np.median, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    )
    interval = drawn.confidence_interval
    return statistics.median(values), float(interval.low), float(interval.high)


@contextmanager
def module_calls() -> Iterator[Counter[tuple[str, tuple[int, ...], bool]]]:
    """Counts calls of elementary modules by (class, shape of the output, whether it carries a graph)."""
    found: Counter[tuple[str, tuple[int, ...], bool]] = Counter()

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and next(module.children(), None) is None:
            found[type(module).__name__, tuple(output.shape), output.requires_grad] += 1

    handle = register_module_forward_hook(record)
    try:
        yield found
    finally:
        handle.remove()


def _count_both(step: Any, bare: Any) -> int:
    """How many calls the step makes beyond the bare ones."""
    with module_calls() as of_step:
        step()
    with module_calls() as of_bare:
        bare()
    missing = of_bare - of_step
    if missing:
        raise UserError(
            f"the bare side makes {missing.total()} calls that the step does not, such as {next(iter(missing))}; "
            "the comparison would be unfair, so the bare side has to follow the method"
        )
    return (of_step - of_bare).total()


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _stops(result: StepResult) -> dict[str, int]:
    return {
        name.removeprefix("stop/"): int(value)
        for name, value in result.metrics.items()
        if name.startswith("stop/")
    }


@dataclass
class _Clock:
    seconds: float = 0.0
    started: float = 0.0


@contextmanager
def _optimizer_clock() -> Iterator[_Clock]:
    """Adds up the time that optimisers take."""
    clock = _Clock()

    def before(*_: Any) -> None:
        clock.started = time.perf_counter()

    def after(*_: Any) -> None:
        clock.seconds += time.perf_counter() - clock.started

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield clock
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _settled_garbage() -> Iterator[None]:
    """Puts what exists now out of reach of the garbage collector, whose visits would hit one side by chance."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
