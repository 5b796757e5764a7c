"""Guided distillation (Meng et al., arXiv 2210.03142, section 3.1): a student that is told w in place of being guided.

    x_t = alpha x0 + sigma eps,   t uniform over the model's timesteps,   w uniform in its range
    L = E omega(t) |x0_student(x_t, t, w) - [u + w (c - u)]_x0|^2,        omega = max(alpha^2 / sigma^2, 1)

u and c are the teacher's two halves, evaluated without gradient at the same state. The student then draws at half the
cost, at any w of the range, and is where progressive distillation begins (`unifl.methods.progressive`). omega is the
truncated SNR of Salimans and Ho (arXiv 2202.00512, section 4).

Differences from the paper: its w counts from 0 (no guidance), ours from 1, so that its [0, 4] is [1, 5]; t is one of
the model's timesteps, where the paper draws it from all of (0, 1]; the embedding of w starts at zero.

Data: pictures with captions. Copies of the backbone: the teacher. Cost of a step: per picture one evaluation with a
graph, two without (both halves of the teacher), and one encode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from unifl.errors import UserError
from unifl.losses import truncated_snr
from unifl.losses.consistency import squared
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import Rows, check_latents, need_source
from unifl.models.generator import Generator
from unifl.models.roles import STUDENT
from unifl.models.schedule import require_diffusion
from unifl.process import time_of_index
from unifl.sampling import FixedGuidance, RangeGuidance, draw_guidance_each, halves

TEACHER = "teacher"


@dataclass(kw_only=True)
class GuidedDistillationConfig:
    """Guided distillation; the defaults are those of the paper's first experiments."""

    kind: Literal["guided_distillation"] = "guided_distillation"
    guidance: FixedGuidance | RangeGuidance = field(default_factory=lambda: RangeGuidance(low=1.0, high=5.0))
    """w of the teacher's u + w (c - u), drawn per sample; what the student can be asked for later."""
    negative_prompt: str | None = None
    """The unconditional half's prompt; null takes what the pipeline takes when it is given none."""
    weight: Literal["truncated_snr", "uniform"] = "truncated_snr"
    """Of the squared error of x0: truncated_snr is never below 1, and that of eps where there is little noise."""
    source: str = "images"
    """Pictures with captions."""


class GuidedDistillation:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model, whose student embeds guidance.
        config: Settings.
        sources: Data by name; `config.source` must be there.

    Raises:
        UserError: A flow model, a student that is not told its guidance, a start that is told it already, a
            text encoder that trains, or data that are missing or do not fit.
    """

    def __init__(
        self, generator: Generator, config: GuidedDistillationConfig, *, sources: Mapping[str, Source]
    ) -> None:
        require_diffusion(generator.schedule, wanted_by="guided_distillation")
        need_source(config.source, sources, wanted_by="guided_distillation")
        check_latents(config.source, sources[config.source], generator)
        if generator.trains_text:
            raise UserError(
                "guided_distillation distils the denoiser alone; set model.train.text_encoder to false"
            )
        if not generator.embeds_guidance():
            raise UserError(
                "guided_distillation tells the student its guidance scale, which this one does not take; set "
                "model.train to {kind: full, embed_guidance: true}"
            )
        if generator.embeds_guidance(TEACHER):
            raise UserError(
                "guided_distillation needs a teacher with two halves, and this model is told its guidance scale "
                "already; start from the model that it was distilled from"
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

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """The loss of one micro-batch; `update` is "student"."""
        generator, config, key = self.generator, self.config, batch.key
        rows = Rows(generator, batch.data[config.source])
        cond, device = rows.cond, rows.cond.embeds.device
        x0 = rows.drawn_latents(key)
        index = key.integers("guided/timestep", 0, generator.num_train_timesteps)
        t = time_of_index(index, generator.num_train_timesteps).to(device)
        eps = key.normal("guided/noise", x0.shape[1:], device=device)
        x_t = generator.process.add_noise(x0, eps, t)
        scale = draw_guidance_each(config.guidance, key, "guided/guidance", device=device)
        negative = None
        if halves(config.guidance) == 2:
            negative = generator.encode_negative(config.negative_prompt, len(key))
            negative = replace(negative, time_ids=cond.time_ids)
        with torch.no_grad():
            target = generator.denoise(TEACHER, x_t, t, cond, guidance=scale, negative=negative).x0
        distance = squared(generator.denoise(STUDENT, x_t, t, cond, guidance=scale).x0, target)
        if config.weight == "truncated_snr":
            distance = truncated_snr(*generator.process.weights(t)) * distance
        return StepOutput(losses={"distillation": distance.mean()})

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step."""
        count = Evaluations(batch_size, trains_text=False)
        count.latents(self.config.source)
        count.add("unet forward+backward")
        count.add("unet forward", halves(self.config.guidance))
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept between steps."""
