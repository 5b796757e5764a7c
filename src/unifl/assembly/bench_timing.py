"""Interleaved pairs of timings: a training step of the loop, and the same evaluations run bare."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from unifl.errors import UserError
from unifl.methods.base import Method, MicroBatch
from unifl.training.batches import Layout, draw_micro_batches
from unifl.training.config import TrainingConfig
from unifl.training.loop import StepResult, train
from unifl.training.memory import LiveBytes

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
        ema: The part of it that the moving average took.
        bare: What was run beside it: its evaluations, bare.
    """

    step: int
    stops: dict[str, int]
    whole: float
    optimizer: float
    ema: float
    bare: float

    @property
    def ratio(self) -> float:
        """The step without optimisers and moving average, over its evaluations run bare."""
        return self.alone / self.bare

    @property
    def alone(self) -> float:
        """Seconds of the step without optimisers and moving average."""
        return self.whole - self.optimizer - self.ema


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

    def seconds(self) -> dict[str, float]:
        """Medians over pairs: the step without optimisers and average, these two, and the evaluations."""
        return {
            "step": statistics.median(pair.alone for pair in self.pairs),
            "bare": statistics.median(pair.bare for pair in self.pairs),
            "optimizer": statistics.median(pair.optimizer for pair in self.pairs),
            "ema": statistics.median(pair.ema for pair in self.pairs),
        }

    def as_plain(self) -> list[dict[str, Any]]:
        """The pairs for the record."""
        return [vars(pair) | {"ratio": pair.ratio} for pair in self.pairs]


Beside = Callable[[MicroBatch], Callable[[], Any]]
"""Makes, from the rows and the key of a step, what is timed beside that step."""


def time_pairs(
    method: Method, beside: Beside, *, batch_size: int, pairs: int, seed: int, folder: Path
) -> Timings:
    """Train in the loop and run each step's evaluations bare beside it, in turns of who goes first.

    Args:
        method: What trains, with all its prompts encoded.
        beside: Makes the bare counterpart of a step; not timed.
        batch_size: Rows of a step.
        pairs: Pairs that are timed, after `WARM_UP` others.
        seed: Of rows and draws.
        folder: Where the loop writes its run.

    Raises:
        UserError: The bare side evaluates something that the step does not.
    """
    timings = Timings()
    with closing(_side_by_side(method, beside, batch_size, seed, folder)) as sides:
        for _ in range(WARM_UP):
            timings.beyond = max(timings.beyond, _count_both(*next(sides)))
        timings.pairs = [_timed(number, *next(sides)) for number in range(WARM_UP, WARM_UP + pairs)]
    return timings


def time_against(
    method: Method,
    beside: Beside,
    *,
    batch_size: int,
    pairs: int,
    seed: int,
    folder: Path,
    known: Sequence[Sequence[Tensor]] = ((), ()),
) -> tuple[Timings, tuple[int, int]]:
    """As `time_pairs`, beside a whole step of another's making, whose evaluations may be others.

    Args:
        known: Tensors that the two sides hold, used in a step or not.

    Returns:
        The timings, and the most bytes of tensors that each side holds at once during a step: weights, moments of
        the optimiser, averages, what backward keeps, and what is only passing. Counted over one further step each;
        scratch space inside an operation and the process itself are not in it.
    """
    timings = Timings()
    with closing(_side_by_side(method, beside, batch_size, seed, folder)) as sides:
        for number in range(WARM_UP):
            _timed(number, *next(sides))
        timings.pairs = [_timed(number, *next(sides)) for number in range(WARM_UP, WARM_UP + pairs)]
        step, other = next(sides)
        peaks = (peak_bytes(step, known[0]), peak_bytes(other, known[1]))
    return timings, peaks


def peak_bytes(work: Callable[[], Any], known: Sequence[Tensor] = ()) -> int:
    """The most bytes of tensors that are alive at once while something runs, those held before among them.

    Args:
        work: Runs.
        known: Tensors that count as held, whether it touches them or not.
    """
    with LiveBytes(known) as live:
        work()
    return live.before + live.peak


@dataclass
class _Step:
    """The next step of a training, with the time that optimisers and average take in it."""

    steps: Iterator[StepResult]
    clock: _Clock

    def __call__(self) -> StepResult:
        self.clock.optimizer = self.clock.ema = 0.0
        return next(self.steps)


def _side_by_side(
    method: Method, beside: Beside, batch_size: int, seed: int, folder: Path
) -> Generator[tuple[_Step, Callable[[], Any]], None, None]:
    """A step of the loop and its counterpart, both yet to run, without end."""
    config = TrainingConfig(
        max_train_steps=_NEVER,
        checkpointing_steps=_NEVER,
        checkpoint_on_interrupt=False,
        train_batch_size=batch_size,
        learning_rate=1e-6,
        ema_decay=0.95 if "ema" in method.roles else None,
        seed=seed,
    )
    layout = Layout(batch_size, 1)
    steps = train(method, config, folder)
    try:
        with _clock_of(method) as clock, _settled_garbage():
            for number in count():
                batch = draw_micro_batches(method, layout, seed=seed, step=number)[0]
                yield _Step(steps, clock), beside(batch)
    finally:
        steps.close()  # type: ignore[attr-defined]


def _timed(number: int, step: _Step, other: Callable[[], Any]) -> Pair:
    """Run both, in turns of who goes first."""
    other_first = number % 2 == 1
    seconds = _seconds(other) if other_first else 0.0
    result = step()
    optimizer, ema = step.clock.optimizer, step.clock.ema
    if not other_first:
        seconds = _seconds(other)
    return Pair(number + 1, _stops(result), result.seconds, optimizer, ema, seconds)


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
    optimizer: float = 0.0
    ema: float = 0.0


@contextmanager
def _clock_of(method: Method) -> Iterator[_Clock]:
    """Adds up the time that optimisers and the moving average take."""
    clock, started = _Clock(), [0.0]
    roles = method.generator.roles
    update = roles.ema_update

    def before(*_: Any) -> None:
        started[0] = time.perf_counter()

    def after(*_: Any) -> None:
        clock.optimizer += time.perf_counter() - started[0]

    def timed_update(decay: float) -> None:
        clock.ema += _seconds(lambda: update(decay))

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    roles.ema_update = timed_update
    try:
        yield clock
    finally:
        del roles.ema_update  # the method of its class again
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
