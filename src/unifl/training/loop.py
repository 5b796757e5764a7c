"""The training loop: plain, and a generator, so that early stopping is the caller's own code.

    for result in train(method, config, "runs/mine", save_model=...):
        print(result.step, result.losses)

Within a step, for each update of the method in turn: losses of all micro-batches, gradients averaged over
processes, a look at every number, clipping, the optimiser. Files are written between steps only.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from unifl import config as configs
from unifl.errors import FeedbackFailed, UserError
from unifl.guard import training_active
from unifl.methods.base import Method, MicroBatch
from unifl.training.batches import Layout, check_sources, draw_micro_batches, seed_stray_draws
from unifl.training.config import TrainingConfig
from unifl.training.distributed import any_process, average_gradients, broadcast_tensors, from_all
from unifl.training.ema import ema_decay
from unifl.training.interrupt import Interrupts
from unifl.training.monitor import Means, TermGradients, require_finite
from unifl.training.run import Run, SaveModel, prepare_accelerator
from unifl.training.state import TrainingState

Preview = Callable[[list[str]], Tensor]
"""Draws pictures (n, 3, h, w) in [0, 1] for the preview prompts, the same noise every time."""


@dataclass
class StepResult:
    """One complete training step, averaged over the global batch.

    Attributes:
        step: Number of the step, from 1.
        losses: Weighted loss terms as "update/term".
        metrics: What the method reported.
        grad_norms: L2 norm of each update's gradient before clipping, as "update", and of each term's where
            that was asked for, as "update/term".
        learning_rates: The rate that each update just used.
        previews: The method's own pictures, on preview steps.
        seconds: Duration of the step, without the files that were written after it.
        remaining_seconds: Expected time to the end of the run; None at first.
        checkpoint: The checkpoint that was written after this step, if one was.
    """

    step: int
    losses: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    grad_norms: dict[str, float] = field(default_factory=dict)
    learning_rates: dict[str, float] = field(default_factory=dict)
    previews: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    remaining_seconds: float | None = None
    checkpoint: Path | None = None

    def numbers(self) -> dict[str, float]:
        """What is logged, under flat names; nothing in it depends on the clock."""
        flat = {f"loss/{name}": value for name, value in self.losses.items()}
        flat |= self.metrics
        flat |= {f"grad_norm/{name}": value for name, value in self.grad_norms.items()}
        return flat | {f"learning_rate/{name}": value for name, value in self.learning_rates.items()}


AfterStep = Callable[[StepResult], None]
"""Looks at the model after a step."""

Ends = Callable[[int], bool]
"""Whether a run ends with this step, before its last one."""


def train(
    method: Method,
    config: TrainingConfig,
    run_folder: str | Path,
    *,
    preview: Preview | None = None,
    save_model: SaveModel | None = None,
    model_bytes: int = 0,
    after_step: AfterStep | None = None,
    ends: Ends | None = None,
    resume_from_checkpoint: str | Path | None = None,
    settings: str | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> Iterator[StepResult]:
    """Train a method; settings are checked at the call, steps are made as the result is iterated.

    Args:
        method: What to train, with its generator on its device.
        config: How.
        run_folder: Where `config.yaml`, `metrics.jsonl`, `timings.jsonl`, `samples/`, `checkpoint-<step>/` and, at
            the end, `model/` go.
        preview: Draws the preview pictures; called every `preview_steps` on the main process.
        save_model: Writes the user's files (pipeline, LoRA) into a folder; called for `model/` of each checkpoint
            and once at the end for `model/` of the run.
        model_bytes: About how much `save_model` writes, so that the disk can be looked at before the first step.
        after_step: Called after every step, once its files are written, on the main process. Ctrl-C waits for its
            end as for that of the step; in the code that iterates it acts at once, without a checkpoint.
        ends: Asked on the main process with the number of steps made: before the first step, and after each once
            `after_step` has looked. True ends the run there as its last step would, with a checkpoint and the model.
            The answer must be the same when a finished or interrupted run asks again.
        resume_from_checkpoint: "latest" (start anew when there is none), a checkpoint's path or name, or None.
        settings: The whole recipe as YAML, kept with the run; by default the two configs known here.
        accelerator: Made here when not given; mixed precision "no", as the generator does its own autocast.
        progress: Show a progress bar with the time that is left.

    Returns:
        One result per training step that was made; none when the run was complete already.

    Raises:
        UserError: Settings that make no sense, a missing or damaged checkpoint, no room on the disk.
        TrainingStopped: While iterating: a loss, a metric or a gradient is NaN or infinite.
        FeedbackFailed: While iterating: a feedback gave no answer. Where that was before anything had moved in its
            step, the state after the step before is written as a checkpoint first.
    """
    run_folder = Path(run_folder)
    accelerator = prepare_accelerator(accelerator, config, run_folder)
    check_sources(method.sources)
    if method.generator.mixed_precision != config.mixed_precision:
        raise UserError(
            f"mixed_precision is {config.mixed_precision!r} for training, but the generator was loaded with "
            f"{method.generator.mixed_precision!r}; load it with the same"
        )
    if settings is None:
        settings = configs.dump({"training": config, "method": method.config})
    state = TrainingState.new(method, config)
    run = Run(
        state,
        config,
        run_folder,
        settings=settings,
        accelerator=accelerator,
        save_model=save_model,
        model_bytes=model_bytes,
    )
    run.start(resume_from_checkpoint, ends)
    broadcast_tensors(state.tensors())
    return _steps(run, preview, after_step, ends, progress)


def _steps(
    run: Run, preview: Preview | None, after_step: AfterStep | None, ends: Ends | None, progress: bool
) -> Iterator[StepResult]:
    state, config = run.state, run.config
    layout = Layout(
        micro_batch=config.train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        processes=run.accelerator.num_processes,
        process=run.accelerator.process_index,
    )
    with ExitStack() as open_things:
        open_things.enter_context(training_active())
        interrupts = open_things.enter_context(Interrupts())
        bar = open_things.enter_context(run.open(progress=progress))
        if state.step == 0 and config.preview_steps:
            _show(run, preview, {}, 0)
        ended = _ended(run, ends)
        while state.step < config.max_train_steps and not ended:
            with interrupts.deferred():
                result = _one_step(run, layout)
                _write_files(run, result, preview)
                if after_step is not None and run.accelerator.is_main_process:
                    after_step(result)
                ended = _ended(run, ends)
                if ended and result.checkpoint is None:
                    result.checkpoint = run.write_checkpoint()
                if any_process(interrupts.requested is not None):
                    _write_at_interrupt(run, result, interrupts)
            bar.update(sum(result.losses.values()), result.remaining_seconds)
            yield result
        run.finish()


def _one_step(run: Run, layout: Layout) -> StepResult:
    """All updates of one training step, and the moving average."""
    state, config = run.state, run.config
    started = time.perf_counter()
    batches = draw_micro_batches(state.method, layout, seed=config.seed, step=state.step)
    result = StepResult(step=state.step + 1)
    moved = False
    for update in state.method.updates:
        try:
            moved |= _one_update(run, update, batches, result)
        except FeedbackFailed as error:
            _stop_for_feedback(run, error, moved=moved)
    if config.ema_decay is not None:
        state.method.generator.roles.ema_update(ema_decay(result.step, config.ema_decay))
    state.step = result.step
    result.seconds = time.perf_counter() - started
    return result


def _one_update(run: Run, update: str, batches: list[MicroBatch], result: StepResult) -> bool:
    """One optimiser's part of a step: gradients of the global batch, checks, clipping, the optimiser.

    Returns:
        Whether the optimiser made a step.
    """
    state, config = run.state, run.config
    parameters, optimizer = state.method.parameters[update], state.optimizers[update]
    optimizer.zero_grad(set_to_none=True)
    means = Means()
    term_gradients = TermGradients(parameters)
    failure: FeedbackFailed | None = None
    for batch in batches:
        seed_stray_draws(batch.key, update)
        try:
            output = state.method.step(update, batch)
        except FeedbackFailed as error:
            failure = error
            break
        means.add(output)
        if not output.losses:
            continue
        weight = 1 / len(batches)
        if config.grad_norm_steps and result.step % config.grad_norm_steps == 0:
            term_gradients.add(output.losses, weight)
        # only this update's parameters: a student's loss that passes through the discriminator leaves no
        # gradient there
        (torch.stack(list(output.losses.values())).sum() * weight).backward(inputs=parameters)
    if any_process(failure is not None):  # the others would wait for this process's gradients
        raise failure or FeedbackFailed("a feedback failed in another process")
    losses, metrics = means.gather()
    _add(result, update, losses, metrics, means.previews)
    last = run.last_checkpoint
    require_finite(losses, kind=f"{update} loss term", step=result.step, last=last)
    require_finite(metrics, kind=f"{update} metric", step=result.step, last=last)
    if not losses:  # not this update's turn; its learning rate follows the steps of the training all the same
        _next_rate(state.schedulers[update])
        return False
    average_gradients(parameters)
    norm = _clip(parameters, config.optimizer(update).max_grad_norm)
    require_finite({update: norm}, kind="gradient of", step=result.step, last=last)
    result.grad_norms[update] = norm
    result.grad_norms |= {f"{update}/{term}": value for term, value in term_gradients.norms().items()}
    result.learning_rates[update] = optimizer.param_groups[0]["lr"]
    optimizer.step()
    _next_rate(state.schedulers[update])
    optimizer.zero_grad(set_to_none=True)
    return True


def _stop_for_feedback(run: Run, error: FeedbackFailed, *, moved: bool) -> NoReturn:
    """The end of a run whose feedback gave no answer: a checkpoint of the last complete step, where it still stands."""
    done = run.state.step
    if (
        not moved
        and done
        and (run.last_checkpoint is None or run.last_checkpoint.name != f"checkpoint-{done}")
    ):
        run.write_checkpoint()
    last = run.last_checkpoint
    found = f"the last checkpoint is {last}" if last else "no step had been completed"
    if moved:
        found = f"its step was half made and is not saved, {found}"
    raise FeedbackFailed(f"stopped at step {done + 1}: {error}; {found}") from error


def _next_rate(scheduler: LRScheduler) -> None:
    with warnings.catch_warnings():
        # an optimiser whose first turn is not in the first step has not stepped yet
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
        scheduler.step()


def _add(
    result: StepResult,
    update: str,
    losses: dict[str, float],
    metrics: dict[str, float],
    previews: dict[str, Tensor],
) -> None:
    twice = sorted(set(metrics) & set(result.metrics))
    if twice:
        raise ValueError(f"two updates of the method report the metric {twice[0]!r}; give each its own name")
    result.losses |= {f"{update}/{term}": value for term, value in losses.items()}
    result.metrics |= metrics
    result.previews |= previews


def _clip(parameters: list[torch.nn.Parameter], max_norm: float | None) -> float:
    """Scale gradients down to a total L2 norm; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def _write_files(run: Run, result: StepResult, preview: Preview | None) -> None:
    """Lines, pictures and, where one is due, a checkpoint: in this order, so that no checkpoint is ahead."""
    config = run.config
    run.clock.add_step(result.seconds)
    run.log(result.step, result.numbers(), result.seconds)
    if config.preview_steps and result.step % config.preview_steps == 0:
        _show(run, preview, result.previews, result.step)
    else:
        result.previews = {}
    if result.step % config.checkpointing_steps == 0 or result.step == config.max_train_steps:
        result.checkpoint = run.write_checkpoint()
    result.remaining_seconds = run.clock.remaining(result.step)


def _show(run: Run, preview: Preview | None, pictures: dict[str, Tensor], step: int) -> None:
    """Save preview pictures and the method's own, on the main process."""
    if run.accelerator.is_main_process:
        started = time.perf_counter()
        if preview is not None and run.config.preview_prompts:
            pictures = {"preview": preview(run.config.preview_prompts), **pictures}
        run.save_pictures(step, pictures)
        run.clock.add_extra("preview", time.perf_counter() - started)
    run.accelerator.wait_for_everyone()


def _ended(run: Run, ends: Ends | None) -> bool:
    """The main process' answer, on all processes."""
    return ends is not None and any_process(run.accelerator.is_main_process and ends(run.state.step))


def _write_at_interrupt(run: Run, result: StepResult, interrupts: Interrupts) -> None:
    """The end of an interrupted run: a checkpoint where that is wanted, and the exception of the signal."""
    if run.config.checkpoint_on_interrupt and result.checkpoint is None:
        result.checkpoint = run.write_checkpoint()
    requested = [number for number in from_all(interrupts.requested) if number is not None]
    interrupts.stop(requested[0])
