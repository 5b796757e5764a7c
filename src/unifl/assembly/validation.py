"""A judge beside the training: its scores go into `metrics.jsonl` next to the rewards.

A reward that is climbed too far goes on rising while the judge's scores fall; the report shows both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unifl.assembly import resolve, sources
from unifl.assembly.recipe import Recipe, SamplingConfig
from unifl.evaluation import Judge, read_metrics, score_images
from unifl.models import Generator
from unifl.sampling import sample

_SEED = 7  # of the noise; the same pictures at every look
_METRICS = ("overall", "alignment", "structure", "style", "quality", "color", "layout", "lighting", "detail")


@dataclass(frozen=True)
class Validation:
    """Draws the same pictures every few steps and lets a judge score them.

    Attributes:
        generator: The model in training.
        judge: Any judge but the one of final figures, which would refuse.
        prompts: What is drawn.
        every: Steps from one look to the next.
        last_step: The end of the run, which is always judged.
        sampling: How pictures are drawn.
        role: Whose weights are judged.
        path: `metrics.jsonl` of the run.
    """

    generator: Generator
    judge: Judge
    prompts: list[str]
    every: int
    last_step: int
    sampling: SamplingConfig
    role: str
    path: Path

    @classmethod
    def of(cls, recipe: Recipe, generator: Generator, folder: Path, *, role: str) -> Validation | None:
        """What the recipe asks for; None if it asks for nothing.

        Args:
            recipe: See `load_recipe`.
            generator: The model in training.
            folder: The run folder.
            role: Whose weights are judged; should be those that the run saves.

        Raises:
            UserError: A judge or prompts that are not there.
        """
        wanted = recipe.validation
        if wanted is None:
            return None
        source = sources.source(wanted.prompts, name="validation")
        prompts = sources.prompts_of(source, "validation.prompts")[: wanted.num_prompts]
        return cls(
            generator=generator,
            judge=resolve.judge(wanted.judge),
            prompts=prompts,
            every=wanted.every,
            last_step=recipe.training.max_train_steps,
            sampling=recipe.sampling,
            role=role,
            path=folder / "metrics.jsonl",
        )

    def begin(self, step: int) -> None:
        """Judge the model as it is before training goes on from `step`, unless the log has that already."""
        # of a later step than 0: the process died between a checkpoint and its look
        if self._due(step) and not self._recorded(step):
            self._write(step)

    def after(self, step: int) -> None:
        """Judge the model after a training step, if it is time."""
        if self._due(step):
            self._write(step)

    def _due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.last_step

    def _recorded(self, step: int) -> bool:
        rows = read_metrics(self.path) if self.path.exists() else []
        return any(row["step"] == step and "validation/overall" in row for row in rows)

    def _write(self, step: int) -> None:
        # a line of its own; whoever reads the log joins lines of one step
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **self.scores()}) + "\n")

    @torch.no_grad()
    def scores(self) -> dict[str, float]:
        """Means of the judge's scores as `validation/<metric>`."""
        how = self.sampling
        images = sample(
            self.generator,
            self.prompts,
            seed=_SEED,
            **how.arguments,
            role=self.role,
        )
        table = score_images(self.judge, images, self.prompts, seed=_SEED)
        columns = {name: table.per_prompt(name) for name in _METRICS}
        return {
            f"validation/{name}": float(np.nanmean(values))
            for name, values in columns.items()
            if np.isfinite(values).any()
        }
