"""A recipe becomes a run: check, build, say what it costs, train, save.

recipe = load_recipe("refl", ["training.max_train_steps=10"])
result = run_recipe(recipe)                   # or, step by step:  method = assemble(recipe).method

Nothing is written before everything that can be wrong with a recipe has been looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from unifl import config as configs
from unifl.assembly.build import Assembled, assemble
from unifl.assembly.looks import Looks
from unifl.assembly.monitor import Monitor
from unifl.assembly.recipe import Recipe
from unifl.assembly.validation import Validation
from unifl.errors import UserError
from unifl.models import (
    Generator,
    LoraTraining,
    Sampling,
    UserTraining,
    model_card,
    save_lora,
    save_pipeline,
    save_user_adapter,
)
from unifl.models.adapters import AdapterRoles
from unifl.models.denoiser import UNET
from unifl.models.roles import STUDENT
from unifl.models.user import UserRoles
from unifl.sampling import sample
from unifl.training.checkpoint import SETTINGS, checkpoints
from unifl.training.clock import readable_seconds
from unifl.training.loop import StepResult, train
from unifl.training.plan import Plan, plan
from unifl.training.run import MODEL, prepare_accelerator

_TIMED_STEPS = 10


@dataclass(frozen=True)
class RunResult:
    """The end of a run.

    Attributes:
        folder: The run folder.
        generator: The trained model, or the untrained one after a dry run.
        recipe: As it was saved with the run.
        plan: What was announced; None for a run that was complete already.
        steps: Training steps that were made now; 0 when the run was complete already, or was not started.
        seconds: Wall-clock time of those steps, files included.
        last: The last of them.
        stopped: Why the monitor ended the run before its last step; None if it did not (and on all processes but
            the main one).
    """

    folder: Path
    generator: Generator
    recipe: Recipe
    plan: Plan | None
    steps: int
    seconds: float
    last: StepResult | None
    stopped: str | None = None


def run_recipe(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    resume: str | None = None,
    progress: bool = True,
    console: Console | None = None,
    on_step: Callable[[StepResult], None] | None = None,
) -> RunResult:
    """Train what a recipe says.

    A run folder that holds checkpoints of the same settings is continued; one of other settings is refused.

    Args:
        recipe: See `load_recipe`.
        dry_run: Stop after the plan; nothing is written.
        resume: A checkpoint ("latest", a name or a path) to go on from although settings have changed.
        progress: Show a progress bar.
        console: Where the plan and messages go; a silent one by default.
        on_step: Called after every training step.

    Raises:
        UserError: Before anything long: see `assemble` and `train`.
        TrainingStopped: A number became NaN; the message names the step, the term and the last good checkpoint.
        KeyboardInterrupt: After a checkpoint was written.
    """
    folder = Path(recipe.output_dir).expanduser()
    _check_folder(folder)
    accelerator = prepare_accelerator(None, recipe.training, folder)
    console = console if console is not None and accelerator.is_main_process else Console(quiet=True)
    built = assemble(recipe, device=accelerator.device if recipe.model.device == "auto" else None)
    settings = configs.dump(built.recipe)
    resume = resume or _resume_choice(folder, settings)
    validation = Validation.of(built.recipe, built.generator, folder, role=_role(built.recipe))
    monitor = Monitor.of(built, folder, role=_role(built.recipe))
    announced = None
    if dry_run or not _is_complete(folder, built.recipe, resume, monitor):
        announced = plan(
            built.method,
            recipe.training,
            processes=accelerator.num_processes,
            feedback={**built.feedback, **({} if monitor is None else monitor.held_out())},
        )
        announced.show(console)
    if dry_run:
        console.print("dry run: nothing was trained or written")
        return RunResult(folder, built.generator, built.recipe, announced, 0, 0.0, None)
    started = time.perf_counter()
    steps, last = 0, None
    for last in _steps(built, folder, settings, resume, Looks(validation, monitor), accelerator, progress):
        steps += 1
        if steps == _TIMED_STEPS and last.remaining_seconds is not None:
            console.print(f"time: {readable_seconds(last.remaining_seconds)} left after step {last.step}")
        if on_step is not None:
            on_step(last)
    seconds = time.perf_counter() - started
    stopped = None if monitor is None else monitor.stopped
    _tell_end(console, folder, steps, seconds, stopped)
    return RunResult(folder, built.generator, built.recipe, announced, steps, seconds, last, stopped)


def _steps(
    built: Assembled,
    folder: Path,
    settings: str,
    resume: str | None,
    looks: Looks,
    accelerator: Accelerator,
    progress: bool,
) -> Iterator[StepResult]:
    """The steps of the loop, with a look before the first and after each that is due."""
    if resume is not None and looks.monitor is not None and accelerator.is_main_process:
        looks.monitor.prepare()
    results = train(
        built.method,
        built.recipe.training,
        folder,
        preview=_preview(built),
        save_model=_saver(built, looks.monitor),
        model_bytes=_model_bytes(built),
        after_step=looks.after,
        ends=None if looks.monitor is None else looks.monitor.ends,
        resume_from_checkpoint=resume,
        settings=settings,
        accelerator=accelerator,
        progress=progress,
    )
    if accelerator.is_main_process:
        looks.begin(folder)
    return results


# --- what the loop calls ---------------------------------------------------------------------------------


def _role(recipe: Recipe) -> str:
    """Whose weights are shown, judged and saved: the moving average, where there is one."""
    return "student" if recipe.training.ema_decay is None else "ema"


def _preview(built: Assembled) -> Callable[[list[str]], Tensor]:
    how = built.recipe.sampling

    def preview(prompts: list[str]) -> Tensor:
        return sample(
            built.generator,
            prompts,
            seed=built.recipe.training.seed,
            **how.arguments,
            role=_role(built.recipe),
        )

    return preview


def _saver(built: Assembled, monitor: Monitor | None) -> Callable[[Path], None]:
    recipe, generator = built.recipe, built.generator
    how, role = recipe.sampling, _role(recipe)
    sampling = Sampling(how.num_steps, how.guidance, how.spacing, how.consistency)
    title = Path(recipe.output_dir).name

    def save(folder: Path) -> None:
        save_pipeline(generator, folder, role=role, spacing=how.spacing, consistency=how.consistency)

    def save_model(folder: Path) -> None:
        summary = _summary(recipe, None if monitor is None else monitor.stopped)
        train = recipe.model.train
        kind: Literal["pipeline", "lora", "user"] = "pipeline"
        if isinstance(train, LoraTraining):
            kind = "lora"
            save_lora(generator, folder, role=role)
            if recipe.save_pipeline:
                save(folder / "pipeline")
        elif isinstance(train, UserTraining):
            kind = "user"
            save_user_adapter(generator, folder, role=role)
        else:
            save(folder)
        model_card(folder, generator, kind=kind, sampling=sampling, title=title, summary=summary)

    return save_model


def _model_bytes(built: Assembled) -> int:
    """Bytes of the files that `_saver` writes, as far as tensors go."""
    networks, roles = built.generator.modules().values(), built.generator.roles
    pipeline = sum(parameter.nbytes for network in networks for parameter in network.parameters())
    if isinstance(roles, UserRoles):
        return sum(4 * parameter.numel() for parameter in roles.parameters(STUDENT).values())
    if not isinstance(roles, AdapterRoles):
        return pipeline
    lora = sum(
        parameter.numel()
        for component, network in roles.components.items()
        for name, parameter in network.named_parameters()
        if ".lora_" in name and not set(roles.adapters(component, STUDENT)).isdisjoint(name.split("."))
    )
    formats = 2 if built.generator.denoiser == UNET else 1  # diffusers' and kohya's, in float32
    return formats * 4 * lora + (pipeline if built.recipe.save_pipeline else 0)


def _summary(recipe: Recipe, stopped: str | None) -> str:
    training = recipe.training
    rows = training.train_batch_size * training.gradient_accumulation_steps
    text = configs.dump(replace(recipe, output_dir=Path(recipe.output_dir).name))
    end = "" if stopped is None else f" The monitor ended the run early: {stopped}."
    return (
        f"Method `{recipe.method.kind}`, {training.max_train_steps} steps of {rows} rows per process, learning rate "
        f"{training.learning_rate:g}.{end}\n\n<details><summary>Recipe</summary>\n\n```yaml\n{text}```\n\n</details>"
    )


# --- the run folder --------------------------------------------------------------------------------------


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file; name a folder")


def _resume_choice(folder: Path, settings: str) -> str | None:
    """Answer "latest" where the folder has checkpoints of the same settings, None where it has none.

    A setting that is null and that the folder has not heard of, as it is newer, changes nothing.

    Raises:
        UserError: It has checkpoints of other settings.
    """
    if not checkpoints(folder):
        return None
    path = folder / SETTINGS
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    changed = _changes(before, settings)
    if not changed:
        return "latest"
    raise UserError(
        f"{folder} holds a run with other settings ({changed}); choose another output_dir, delete the folder, or go "
        "on with the new settings by --resume latest"
    )


def _is_complete(folder: Path, recipe: Recipe, resume: str | None, monitor: Monitor | None) -> bool:
    newest = max((step for step, _ in checkpoints(folder)), default=0)
    over = newest >= recipe.training.max_train_steps or (monitor is not None and monitor.ends(newest))
    return resume == "latest" and over and (folder / MODEL).is_dir()


def _changes(before: str, after: str, limit: int = 4) -> str:
    old, new = _flat(configs.load(before + "\n", dict)), _flat(configs.load(after, dict))
    names = [name for name in (old | new) if old.get(name) != new.get(name)]
    told = [f"{name}: {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names[:limit]]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(told) + more


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _tell_end(console: Console, folder: Path, steps: int, seconds: float, stopped: str | None) -> None:
    if stopped is not None:
        console.print(f"ended by the monitor: {stopped}", highlight=False, markup=False, soft_wrap=True)
    if steps == 0:
        console.print(f"{folder} is complete already; nothing was left to train")
    else:
        console.print(f"{steps} steps in {readable_seconds(seconds)}; the model is in {folder / MODEL}")
