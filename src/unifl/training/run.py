"""One run's files and processes: where it starts from, what it writes, what it shows."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor
from tqdm.auto import tqdm

from unifl import config as configs
from unifl.disk import claimed, require_free_space
from unifl.errors import TrainingStopped, UserError
from unifl.training.checkpoint import (
    SETTINGS,
    checkpoints,
    find_checkpoint,
    prune,
    remove_unfinished,
    set_aside,
    set_newer_aside,
    warn_about_differences,
    write_checkpoint,
    write_folder,
)
from unifl.training.clock import Clock, readable_seconds
from unifl.training.config import TrainingConfig
from unifl.training.distributed import close_at_exit
from unifl.training.logging import StepLines, save_grid
from unifl.training.memory import optimizer_bytes
from unifl.training.monitor import all_finite
from unifl.training.state import TrainingState
from unifl.training.statefile import sort_header

SaveModel = Callable[[Path], Any]
"""Writes the user-facing model into a folder that exists."""

MODEL = "model"
"""Folder of the user-facing model, in the run folder and in each checkpoint."""


class Bar:
    """A progress bar with the loss and the time that is left."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self, loss: float, remaining_seconds: float | None) -> None:
        """Move on by one step."""
        shown = f"loss {loss:.4g}"
        if remaining_seconds is not None:
            shown += f", {readable_seconds(remaining_seconds)} left"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()


class Run:
    """A run folder in use.

    Attributes:
        state: What trains.
        config: How.
        folder: Where everything is written.
        clock: Durations so far.
        last_checkpoint: The newest checkpoint that this run started from or wrote.
    """

    def __init__(
        self,
        state: TrainingState,
        config: TrainingConfig,
        folder: Path,
        *,
        settings: str,
        accelerator: Accelerator,
        save_model: SaveModel | None,
        model_bytes: int,
    ) -> None:
        self.state, self.config, self.folder = state, config, folder
        self.accelerator = accelerator
        self.last_checkpoint: Path | None = None
        self.clock = Clock(
            total_steps=config.max_train_steps,
            checkpointing_steps=config.checkpointing_steps,
            preview_steps=config.preview_steps,
        )
        self._settings = settings
        self._save_model, self._model_bytes = save_model, model_bytes
        self._lines: dict[str, StepLines] = {}
        self._claim = ExitStack()

    def start(
        self, resume_from_checkpoint: str | Path | None, ends: Callable[[int], bool] | None = None
    ) -> None:
        """Choose a checkpoint and take over its state, keep other processes out, clean up, check the disk.

        Args:
            resume_from_checkpoint: See `train`.
            ends: Whether the run is over although it has not made all its steps.

        Raises:
            UserError: See `train`.
        """
        chosen: list[Path | None] = [None]
        if self.accelerator.is_main_process:
            chosen = [find_checkpoint(self.folder, resume_from_checkpoint)]
        self.last_checkpoint = broadcast_object_list(chosen)[0]
        if self.last_checkpoint is not None:
            self.state.read(self.last_checkpoint)
        if self.accelerator.is_main_process:
            step = self.state.step
            goes_on = step < self.config.max_train_steps and not (ends is not None and ends(step))
            with ExitStack() as claim:
                claim.enter_context(claimed(self.folder))
                self._tidy(goes_on)
                self._claim = claim.pop_all()

    def _tidy(self, goes_on: bool) -> None:
        """Clean up what an earlier process left, and see that there is room for what comes."""
        remove_unfinished(self.folder)
        if goes_on:
            require_free_space(self.folder, self._bytes_to_write())
            _warn_about_warmup(self.config)
        if self.last_checkpoint is not None:
            warn_about_differences(self.last_checkpoint, self._settings)
        if goes_on or any(step > self.state.step for step, _ in checkpoints(self.folder)):
            # of another end than this run comes to; before the checkpoints, so that a process that dies in
            # between does it again
            set_aside(self.folder / MODEL)
        set_newer_aside(self.folder, self.state.step)
        self._prune()  # the process may have died between writing a checkpoint and removing older ones
        (self.folder / SETTINGS).write_text(self._settings, encoding="utf-8")

    @contextmanager
    def open(self, *, progress: bool) -> Iterator[Bar]:
        """Log files, trackers and progress bar, for the time of the loop."""
        if self.accelerator.is_main_process:
            for name in ("metrics", "timings"):
                self._lines[name] = StepLines(self.folder / f"{name}.jsonl", step=self.state.step)
        if self.config.report_to is not None:
            self.accelerator.init_trackers("unifl", config=_flat(configs.plain(self.config)))
        hidden = not (progress and self.accelerator.is_main_process)
        total, done = self.config.max_train_steps, self.state.step
        layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        try:
            with tqdm(total=total, initial=done, disable=hidden, bar_format=layout) as bar:
                yield Bar(bar)
        finally:
            for lines in self._lines.values():
                lines.close()
            self._lines = {}
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self._claim.close()

    def log(self, step: int, numbers: Mapping[str, float], seconds: float) -> None:
        """Write the numbers of a step."""
        if self._lines:
            self._lines["metrics"].write(step, numbers)
            self._lines["timings"].write(step, {"seconds": seconds})
        if self.config.report_to is not None:
            self.accelerator.log({**numbers, "seconds": seconds}, step=step)

    def save_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Save grids as `samples/<step>-<name>.png`."""
        for name, images in pictures.items():
            save_grid(images, self.folder / "samples" / f"{step:06d}-{name.replace('/', '-')}.png")

    def write_checkpoint(self) -> Path:
        """Write `checkpoint-<step>` and remove those that are no longer wanted.

        Raises:
            UserError: The disk has no room for it.
            TrainingStopped: Weights are NaN or infinite.
        """
        started = time.perf_counter()
        step = self.state.step
        path = self.folder / f"checkpoint-{step}"
        if self.accelerator.is_main_process:
            self._require_finite_weights()
            require_free_space(self.folder, self.state.num_bytes() + self._model_bytes)
            for lines in self._lines.values():
                lines.sync()
            path = write_checkpoint(self.folder, step, self._settings, self._fill)
            self._prune()
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = path
        self.clock.add_extra("checkpoint", time.perf_counter() - started)
        return path

    def _bytes_to_write(self) -> int:
        """What the rest of the run adds to the disk when it is fullest: checkpoints, and the model at the end."""
        state, config, limit = self.state, self.config, self.config.checkpoints_total_limit
        every = config.checkpointing_steps
        ahead = math.ceil(config.max_train_steps / every) - state.step // every
        if limit is not None:
            kept = sum(step <= state.step for step, _ in checkpoints(self.folder))
            ahead = min(ahead, limit + 1 - min(kept, limit))  # the oldest goes when the newest is complete
        weights = sum(tensor.nbytes for tensor in state.tensors())
        optimizers = sum(
            optimizer_bytes(state.method.parameters[update], config.optimizer(update))
            for update in state.method.updates
        )
        return ahead * (weights + optimizers + self._model_bytes) + self._model_bytes

    def _prune(self) -> None:
        limit, every = self.config.checkpoints_total_limit, self.config.checkpointing_steps
        prune(self.folder, limit=limit, every=every)

    def finish(self) -> None:
        """Write the user-facing model, unless a complete run is only being looked at again."""
        if self.accelerator.is_main_process and self._save_model and not (self.folder / MODEL).exists():
            write_folder(self.folder / MODEL, self._fill_model)
        self.accelerator.wait_for_everyone()

    def _fill(self, folder: Path) -> None:
        self.state.write(folder)
        if self._save_model is not None:
            (folder / MODEL).mkdir()
            self._fill_model(folder / MODEL)

    def _fill_model(self, folder: Path) -> None:
        """The caller's files, in bytes that depend on their content alone."""
        assert self._save_model is not None
        self._save_model(folder)
        for path in folder.rglob("*.safetensors"):
            sort_header(path)

    def _require_finite_weights(self) -> None:
        if all_finite(tensor for tensor in self.state.tensors() if tensor.is_floating_point()):
            return
        found = (
            f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "there is none"
        )
        raise TrainingStopped(
            f"stopped at step {self.state.step}: trained weights are NaN or infinite after the optimiser's step; "
            f"{found}. Nothing was saved after it. A lower learning rate may help"
        )


def prepare_accelerator(given: Accelerator | None, config: TrainingConfig, run_folder: Path) -> Accelerator:
    """The accelerator of a run, made here unless the caller has one.

    Raises:
        UserError: A tracker that cannot be used, or a way of distributing that the loop does not do.
    """
    if given is None:
        try:
            given = Accelerator(mixed_precision="no", log_with=config.report_to, project_dir=str(run_folder))
        except ValueError as error:
            raise UserError(f"accelerate refuses these settings: {error}") from error
        close_at_exit()  # whoever brings an accelerator ends its processes too
    if config.report_to is not None and not given.log_with:
        raise UserError(
            f"the tracker {config.report_to!r} is not installed; try: pip install {config.report_to}"
        )
    kind = given.distributed_type
    if kind != DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise UserError(
            f"training under {kind.value} is not supported; choose plain multi-process training in `accelerate config`"
        )
    if given.scaler is not None:
        raise UserError("fp16 with loss scaling is not supported; use mixed_precision bf16 or no")
    return given


def _warn_about_warmup(config: TrainingConfig) -> None:
    if config.lr_warmup_steps >= config.max_train_steps:
        warnings.warn(
            f"lr_warmup_steps is {config.lr_warmup_steps} and max_train_steps is {config.max_train_steps}: learning "
            "rates never reach their peak; lower lr_warmup_steps or train longer",
            stacklevel=2,
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as trackers take them: one level, scalars and text."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
