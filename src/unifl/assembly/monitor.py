"""Signs of over-optimisation beside the training, and an end of the run where they go too far.

Every few steps the same prompts are drawn from the same noise as at the start, and what has changed goes into
`metrics.jsonl` as `monitor/...`: detail above a frequency cut, held-out rewards, distance, seed diversity.

The rules of `monitor.stop` are asked of that log and of nothing else, so a run that was interrupted, or that is
started again after it was stopped, comes to the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from unifl import config as configs
from unifl.assembly import resolve, sources
from unifl.assembly.build import Assembled
from unifl.assembly.monitor_config import MonitorConfig
from unifl.assembly.recipe import SamplingConfig
from unifl.errors import UserError
from unifl.evaluation import read_metrics
from unifl.evaluation.drift import Reading, drift, require_scale, take_reading
from unifl.feedback import Feedback
from unifl.guard import training_active
from unifl.models import Generator
from unifl.models.roles import STUDENT
from unifl.randomness import Key
from unifl.sampling import sample
from unifl.training.batches import seed_stray_draws

PREFIX = "monitor/"
STOP = "monitor/stop"
"""Key of the reason, in the last row of a run that was stopped."""

_SEED = 8  # of the noise; the same pictures at every look, and not those of validation
_BASE = Path("monitor") / "base.npz"


@dataclass
class Monitor:
    """Draws the same pictures every few steps and sets them beside those of the start.

    Attributes:
        config: What is looked at, and what ends the run.
        generator: The model in training.
        prompts: What is drawn.
        rewards: Those that are measured, as "reward/<name>" (held out) and "trained/<name>".
        last_step: The end of the run, which always has a look.
        sampling: How pictures are drawn.
        role: Whose weights are looked at.
        folder: Of the run; gets `monitor/base.npz`.
        about: Plain values on which the reading of the start depends.
        stopped: Why the run ends; None as long as nothing has.
    """

    config: MonitorConfig
    generator: Generator
    prompts: list[str]
    rewards: Mapping[str, Feedback]
    last_step: int
    sampling: SamplingConfig
    role: str
    folder: Path
    about: dict[str, Any]
    stopped: str | None = field(default=None, init=False)
    _base: Reading | None = field(default=None, init=False)

    @classmethod
    def of(cls, built: Assembled, folder: Path, *, role: str) -> Monitor | None:
        """What the recipe asks for; None if it asks for nothing.

        Args:
            built: The recipe with its model, whose weights are those of the start.
            folder: The run folder.
            role: Whose weights are looked at; should be those that the run saves.

        Raises:
            UserError: Rewards or prompts that are not there or do not fit.
        """
        recipe, config = built.recipe, built.recipe.monitor
        if config is None:
            return None
        source = sources.source(config.prompts, name="monitor")
        model = recipe.model
        return cls(
            config=config,
            generator=built.generator,
            prompts=sources.prompts_of(source, "monitor.prompts")[: config.num_prompts],
            rewards=_rewards(built, config),
            last_step=recipe.training.max_train_steps,
            sampling=recipe.sampling,
            role=role,
            folder=folder,
            about={
                "model": [model.pretrained_model_name_or_path, model.lora, model.student, model.resolution],
                "rewards": configs.plain([config.rewards, recipe.rewards]),
                "sampling": configs.plain(recipe.sampling),
                "cut": config.cut,
            },
        )

    @property
    def log(self) -> Path:
        """`metrics.jsonl` of the run."""
        return self.folder / "metrics.jsonl"

    def held_out(self) -> dict[str, list[nn.Module]]:
        """Networks that the monitor brings, under their name in the plan of a run; empty if there are none."""
        brought = {name: reward for name, reward in self.rewards.items() if name.startswith("reward/")}
        networks = resolve.networks_of(brought)
        return {"held-out rewards": networks} if networks else {}

    def prepare(self) -> None:
        """Get the pictures of the start before a checkpoint is read into the student, which is still the start.

        They are those of the run folder. Where the monitor is new to the run, or looks at other things than before,
        they are drawn.
        """
        self._base = Reading.load(self.folder / _BASE, self._about())
        if self._base is None:
            self._base = self._read(STUDENT)
            self._keep(self._base)

    def begin(self, step: int) -> None:
        """Look at the model as it is before training goes on from `step`, unless the log has that already.

        Raises:
            UserError: The start gives no scale, a reward gives no number, or a stop rule is broken by the start.
        """
        if self._base is None:  # a new run: the student is the start
            self._base = self._read(STUDENT)
            self._keep(self._base)
        if not self._recorded(0):
            found = drift(self._base, self._base)
            self._require_room(found)
            self._write(0, found)
        if step > 0 and self._due(step) and not self._recorded(step):
            self._look(step)  # the process died between a checkpoint and its look
        self._conclude(step)

    def after(self, step: int) -> None:
        """Look at the model after a training step, if it is time."""
        if self._due(step):
            self._look(step)
            self._conclude(step)

    def ends(self, step: int) -> bool:
        """Whether the looks up to `step` end the run there; `stopped` then says why."""
        self.stopped = self._verdict(step) if self._due(step) else None
        return self.stopped is not None

    # --- looks -------------------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        return step % self.config.every == 0 or step == self.last_step

    def _look(self, step: int) -> None:
        assert self._base is not None
        self._write(step, drift(self._read(self.role), self._base))

    def _read(self, role: str) -> Reading:
        how, config = self.sampling, self.config
        prompts = [prompt for prompt in self.prompts for _ in range(config.seeds)]
        # a reward of the user may draw numbers; every look gets the same ones
        seed_stray_draws(Key(_SEED, 0, (0,)), "monitor")
        with training_active():  # nothing that is kept for final figures may answer here
            images = sample(
                self.generator,
                prompts,
                seed=_SEED,
                **how.arguments,
                role=role,
                batch_size=config.batch_size,
            )
            return take_reading(
                images,
                prompts,
                self.rewards,
                samples=config.seeds,
                cut=config.cut,
                batch_size=config.batch_size,
                device=self.generator.device,
            )

    def _keep(self, base: Reading) -> None:
        require_scale(base)
        base.save(self.folder / _BASE, self._about())

    def _about(self) -> dict[str, Any]:
        return self.about | {"prompts": self.prompts, "seeds": self.config.seeds}

    # --- the log -----------------------------------------------------------------------------------------

    def _rows(self) -> list[dict[str, Any]]:
        return read_metrics(self.log) if self.log.exists() else []

    def _recorded(self, step: int) -> bool:
        return any(row["step"] == step and f"{PREFIX}high_frequency" in row for row in self._rows())

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._append(step, {f"{PREFIX}{name}": value for name, value in numbers.items()})

    def _append(self, step: int, values: Mapping[str, float | str]) -> None:
        # a line of its own; whoever reads the log joins lines of one step
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")

    # --- the end -----------------------------------------------------------------------------------------

    def _conclude(self, step: int) -> None:
        """Note in the log why the run ends at `step`, if it does."""
        if not self.ends(step):
            return
        noted = [row.get(STOP) for row in self._rows() if row["step"] == step]
        if self.stopped is not None and self.stopped not in noted:
            self._append(step, {STOP: self.stopped})

    def _verdict(self, step: int) -> str | None:
        """The first rule that the looks up to `step` break, in words."""
        rows = [row for row in self._rows() if row["step"] <= step]
        for metric, rule in self.config.stop.items():
            values = {row["step"]: row[PREFIX + metric] for row in rows if PREFIX + metric in row}
            broken = rule.broken_by(metric, values)
            if broken is not None:
                return broken
        return None

    def _require_room(self, start: Mapping[str, float]) -> None:
        for metric, rule in self.config.stop.items():
            if rule.beyond_at_once(start[metric]):
                raise UserError(
                    f"{metric} of the start model is {start[metric]:.4g}, which is beyond monitor.stop.{metric} "
                    "already; set a limit that the start keeps"
                )


def _rewards(built: Assembled, config: MonitorConfig) -> dict[str, Feedback]:
    """Held-out rewards, and of those that train the ones that read pixels, by the name of their mean."""
    held_out = resolve.rewards(config.rewards, device=built.generator.device)
    for name, reward in held_out.items():
        if reward.space != "pixel":
            raise UserError(
                f"monitor.rewards.{name} reads latents; the monitor shows pictures, name a reward that reads pixels"
            )
    trained = {name: reward for name, reward in built.rewards.items() if reward.space == "pixel"}
    config.check_stop(config.metrics(list(trained)))
    return {f"reward/{name}": reward for name, reward in held_out.items()} | {
        f"trained/{name}": reward for name, reward in trained.items()
    }
