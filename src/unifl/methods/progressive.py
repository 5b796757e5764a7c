"""Progressive distillation (Salimans and Ho, arXiv 2202.00512, algorithm 2): rounds that halve the number of steps.

In the round of N steps, with the student of the round before as teacher:

    i uniform in 0 ... N - 1;   t = (i + 1) / N,  m = (i + 1/2) / N,  s = i / N;   x_t = alpha x0 + sigma eps
    x_m = DDIM(teacher, x_t, t -> m),   x_s~ = DDIM(teacher, x_m, m -> s)                        (no gradient)
    x0~ = the clean sample whose one DDIM step from (x_t, t) to s lands on x_s~                  (`ddim_origin`)
    L = E max(alpha^2 / sigma^2, 1) |x0_student(x_t, t, w) - x0~|^2

A student of guided distillation (`unifl.methods.guided_distillation`) is told a drawn w, and so is its teacher: the
second stage of Meng et al. (arXiv 2210.03142, section 3.2). Any other model is distilled as it draws without guidance.
Times are those of DDIM with N trailing steps (rounded to the model's timesteps, as there), which is how the result is
sampled; at s = 0 nothing is left of the noise, and the target is the teacher's second prediction.

Differences from the papers: one optimiser and one learning rate schedule run through all rounds, where the papers begin
anew with each; t takes the model's own noise schedule.

Data: pictures with captions. Copies of the backbone: the teacher ("old"), with LoRA a second adapter. Cost of a step:
per picture one evaluation with a graph, two without, and one encode.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.losses import truncated_snr
from unifl.losses.consistency import squared
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import Rows, check_latents, need_source
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.models.roles import STUDENT
from unifl.models.schedule import require_diffusion
from unifl.process import ddim_origin, ddim_step, time_grid
from unifl.randomness import Key
from unifl.sampling import FixedGuidance, NoGuidance, RangeGuidance, draw_guidance_each

TEACHER = "old"


@dataclass(kw_only=True)
class RoundConfig:
    """One halving."""

    num_steps: int
    """Steps of the student when the round is over; its teacher takes twice as many."""
    steps: int
    """Training steps of the round."""


@dataclass(kw_only=True)
class ProgressiveConfig:
    """Progressive distillation; `training.max_train_steps` should be the sum of the rounds' steps."""

    kind: Literal["progressive"] = "progressive"
    rounds: list[RoundConfig] = field(
        default_factory=lambda: [RoundConfig(num_steps=number, steps=500) for number in (32, 16, 8, 4)]
    )
    """Each with half the steps of the one before. The last goes on for as long as training does."""
    guidance: NoGuidance | FixedGuidance | RangeGuidance = field(
        default_factory=lambda: RangeGuidance(low=1.0, high=5.0)
    )
    """w that teacher and student are told, drawn per sample: that of guided distillation. `kind: none` for a model that
    is not told."""
    source: str = "images"
    """Pictures with captions."""

    def __post_init__(self) -> None:
        if not self.rounds:
            raise UserError("progressive.rounds is empty; give at least one {num_steps: ..., steps: ...}")
        for number, round_ in enumerate(self.rounds):
            for name in ("num_steps", "steps"):
                if getattr(round_, name) < 1:
                    raise UserError(
                        f"progressive.rounds[{number}].{name} is {getattr(round_, name)}; it must be at least 1"
                    )
        for before, after in pairwise(self.rounds):
            if before.num_steps != 2 * after.num_steps:
                raise UserError(
                    f"progressive.rounds goes from {before.num_steps} steps to {after.num_steps}; every round must "
                    "have half the steps of the one before"
                )


class Progressive:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model; a student of guided distillation, or any other.
        config: Settings.
        sources: Data by name; `config.source` must be there.

    Raises:
        UserError: A flow model, guidance for a student that is not told it, more steps than the model has timesteps, a
            text encoder that trains, or data that are missing or do not fit.
    """

    def __init__(
        self, generator: Generator, config: ProgressiveConfig, *, sources: Mapping[str, Source]
    ) -> None:
        require_diffusion(generator.schedule, wanted_by="progressive")
        need_source(config.source, sources, wanted_by="progressive")
        check_latents(config.source, sources[config.source], generator)
        if generator.trains_text:
            raise UserError("progressive distils the denoiser alone; set model.train.text_encoder to false")
        if not isinstance(config.guidance, NoGuidance) and not generator.embeds_guidance():
            raise UserError(
                "progressive.guidance is what the student is told, and this one takes no scale; start from a model of "
                "guided_distillation, or set method.guidance to {kind: none}"
            )
        if 2 * config.rounds[0].num_steps > generator.num_train_timesteps:
            raise UserError(
                f"progressive.rounds[0].num_steps is {config.rounds[0].num_steps}; the teacher takes twice as many "
                f"steps, so choose at most {generator.num_train_timesteps // 2}"
            )
        self.generator = generator
        self.config = config
        self.sources: Mapping[str, Source] = {config.source: sources[config.source]}
        self.roles: tuple[str, ...] = (TEACHER,)
        generator.roles.add(TEACHER)
        self.updates: tuple[str, ...] = ("student",)
        self.parameters: Mapping[str, list[nn.Parameter]] = {
            "student": list(generator.trainable_parameters().values())
        }
        self.modules: Mapping[str, nn.Module] = {}
        # training step at which each round begins
        self._starts = [0, *accumulate(round_.steps for round_ in config.rounds[:-1])]

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """The loss of one micro-batch; `update` is "student"."""
        generator, key = self.generator, batch.key
        number = bisect_right(self._starts, key.step) - 1
        if key.step == self._starts[number]:
            # The student becomes the teacher. All micro-batches of a step come before its update, so that doing this
            # at each of them is the same as at the first; a run that is resumed here finds the same two weight sets.
            generator.roles.load_state(TEACHER, generator.roles.state(STUDENT))
        num_steps = self.config.rounds[number].num_steps
        rows = Rows(generator, batch.data[self.config.source])
        cond, device = rows.cond, rows.cond.embeds.device
        t, middle, s = (times.to(device) for times in _draw_times(num_steps, key, generator))
        scale = draw_guidance_each(self.config.guidance, key, "progressive/guidance", device=device)
        with torch.no_grad():
            x0 = rows.drawn_latents(key)
            eps = key.normal("progressive/noise", x0.shape[1:], device=device)
            x_t = generator.process.add_noise(x0, eps, t)
            x_m = self._teacher_step(x_t, t, middle, cond, scale)
            x_s = self._teacher_step(x_m, middle, s, cond, scale)
            target = ddim_origin(x_t, x_s, t, s, generator.process)
        estimate = generator.denoise(STUDENT, x_t, t, cond, guidance=scale).x0
        weight = truncated_snr(*generator.process.weights(t))
        loss = (weight * squared(estimate, target)).mean()
        return StepOutput(losses={"distillation": loss}, metrics={"num_steps": float(num_steps)})

    def _teacher_step(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        cond: Conditioning,
        scale: Float[Tensor, " b"] | float,
    ) -> Float[Tensor, "b c h w"]:
        found = self.generator.denoise(TEACHER, x_t, t, cond, guidance=scale)
        return ddim_step(found.x0, found.eps, s, self.generator.process)

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step."""
        count = Evaluations(batch_size, trains_text=False)
        count.latents(self.config.source)
        count.add("unet forward+backward")
        count.add("unet forward", 2)
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the round follows from the training step, and checkpoints hold the teacher as a role."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept between steps."""


def _draw_times(
    num_steps: int, key: Key, generator: Generator
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Beginning, middle and end of one of the student's steps, per sample: the teacher has twice as many."""
    grid = time_grid(2 * num_steps, "trailing", generator.num_train_timesteps).flip(0)
    index = key.integers("progressive/step", 0, num_steps)
    return grid[2 * index + 2], grid[2 * index + 1], grid[2 * index]
