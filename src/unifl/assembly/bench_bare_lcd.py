"""A step of latent consistency distillation written by hand: the calls that its networks need, and nothing else.

The student with a graph, both halves of the teacher in one batch, the average one solver step further on, and for
RG-LCD the decoder and the rewards on a part of the rows. The loss is a plain mean; the boundary, the pseudo-Huber
distance, keys, roles and checks belong to the method and are left out. As in `bench_bare`, what does not depend on the
weights is prepared before the clock starts: times, guidance and its embedding, and what was encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import LatentConsistencyModelPipeline
from torch import Tensor, nn

from unifl.assembly.bench_bare import arguments_of, mean_of, read, reader_of
from unifl.data.encoded import EncodedBatch
from unifl.errors import UserError
from unifl.methods.base import MicroBatch
from unifl.methods.lcd import LCD, TEACHER
from unifl.models.conditioning import Conditioning
from unifl.models.guidance_embedding import guidance_width
from unifl.models.roles import STUDENT
from unifl.process import SolverConfig
from unifl.sampling import draw_guidance_each, halves


@dataclass
class BareLCD:
    """One step of the student, without its optimiser and its average.

    Attributes:
        student: The UNet that trains.
        teacher: The one that it follows.
        average: The one that its target comes from.
        is_v: Whether they predict v; eps otherwise.
        mean: Of the pictures' latents (b, c, h, w).
        std: Their standard deviation.
        start: Timesteps that the student is asked at, (b,).
        ahead: Timesteps of the target.
        weights: (alpha, sigma) at both, each (b, 1, 1, 1).
        scale: Guidance of the teacher (b, 1, 1, 1).
        told: Arguments of student and average beside state and timestep.
        told_both: Those of the teacher, for both halves.
        vae: Decodes for the rewards.
        readers: Rewards, and whether they read the prompt.
        prompts: Of the rows that are rewarded, which are the first ones.
        parameters: Everything that gets a gradient.
    """

    student: nn.Module
    teacher: nn.Module
    average: nn.Module
    is_v: bool
    mean: Tensor
    std: Tensor
    start: Tensor
    ahead: Tensor
    weights: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    scale: Tensor
    told: dict[str, Any]
    told_both: dict[str, Any]
    vae: Any
    readers: list[tuple[Any, bool]]
    prompts: list[str]
    parameters: list[nn.Parameter] = field(default_factory=list)

    def __call__(self) -> None:
        """Run it; gradients are dropped at the end."""
        latents = self.mean + self.std * torch.randn_like(self.mean)
        noise = torch.randn_like(latents)
        loss = self.loss(latents, noise)
        loss.backward()
        for parameter in self.parameters:
            parameter.grad = None

    def loss(self, latents: Tensor, noise: Tensor) -> Tensor:
        """One number with a graph, of these pictures and this noise, both (b, c, h, w)."""
        now, then = self.weights
        with torch.no_grad():
            x_t = now[0] * latents + now[1] * noise
            raw = self.teacher(x_t.repeat(2, 1, 1, 1), self.start.repeat(2), **self.told_both)[0]
            without, given = raw.chunk(2)
            x0, eps = self._origin(without + self.scale * (given - without), x_t, now)
            x_s = then[0] * x0 + then[1] * eps
            target, _ = self._origin(self.average(x_s, self.ahead, **self.told)[0], x_s, then)
        x0, _ = self._origin(self.student(x_t, self.start, **self.told)[0], x_t, now)
        loss = (x0 - target).abs().mean()
        if self.readers:
            decoded = self.vae.decode(x0[: len(self.prompts)] / self.vae.config.scaling_factor)[0]
            images = decoded * 0.5 + 0.5
            for network, reads_prompt in self.readers:
                loss = loss - mean_of(read(network, images, self.prompts if reads_prompt else None))
        return loss

    def _origin(self, raw: Tensor, x: Tensor, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        alpha, sigma = weights
        if self.is_v:
            return alpha * x - sigma * raw, sigma * x + alpha * raw
        return (x - sigma * raw) / alpha, raw


def prepare_bare_lcd(method: LCD, batch: MicroBatch) -> BareLCD:
    """The bare counterpart of a step on these rows, with the same draws of times and guidance.

    Args:
        method: Whose networks are to be evaluated.
        batch: The rows and the key of the step.

    Raises:
        UserError: The method evaluates something that has no bare counterpart here, see `_check_known`.
    """
    rows = batch.data[method.config.source]
    _check_known(method, rows)
    generator, config, key = method.generator, method.config, batch.key
    pipeline, T = generator.pipeline, generator.num_train_timesteps
    index, every = key.integers("lcd/index", 0, config.grid_steps), T // config.grid_steps
    start = every * (index + 1) - 1
    ahead = (start - every).clamp(min=0)
    scale = torch.as_tensor(draw_guidance_each(config.guidance, key, "lcd/guidance", device=generator.device))
    cond = rows.cond or generator.encode_prompts(rows.prompts)
    negative = generator.encode_negative(config.negative_prompt, len(rows))
    if generator.is_xl:
        cond = replace(cond, time_ids=generator.time_ids(len(rows)))
        negative = replace(negative, time_ids=cond.time_ids)
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        pipeline, scale - 1, embedding_dim=guidance_width(pipeline.unet)
    )
    rewards = method.guiding.rewards.values() if method.guiding is not None else ()
    rewarded = config.rewards.batch_size if config.rewards is not None else None
    return BareLCD(
        student=generator.roles.module("unet", STUDENT),
        teacher=generator.roles.module("unet", TEACHER),
        average=generator.roles.module("unet", "ema"),
        is_v=pipeline.scheduler.config.prediction_type == "v_prediction",
        mean=rows.mean,
        std=rows.std,
        start=start,
        ahead=ahead,
        weights=(_weights(pipeline, start), _weights(pipeline, ahead)),
        scale=scale[:, None, None, None],
        told=arguments_of(generator, cond) | {"timestep_cond": embedding, "return_dict": False},
        told_both=arguments_of(generator, Conditioning.cat([negative, cond])) | {"return_dict": False},
        vae=pipeline.vae,
        readers=[reader_of(reward) for reward in rewards],
        prompts=rows.prompts[: rewarded or len(rows)],
        parameters=method.parameters["student"],
    )


def _weights(pipeline: Any, index: Tensor) -> tuple[Tensor, Tensor]:
    abar = pipeline.scheduler.alphas_cumprod[index][:, None, None, None]
    return abar.sqrt(), (1 - abar).sqrt()


def _check_known(method: LCD, rows: Any) -> None:
    config, generator = method.config, method.generator
    beyond = [
        (not isinstance(rows, EncodedBatch), "pictures that are not encoded yet"),
        (not generator.embeds_guidance(), "a student that is not told its guidance"),
        (generator.roles.num_copies == 0, "LoRA"),
        (config.target != "ema", "lcd.target=student"),
        (config.states != "data", f"lcd.states={config.states}"),
        (config.solver != SolverConfig(), "another solver than one DDIM step"),
        (halves(config.guidance) != 2, "a teacher without guidance"),
        (method.proxy is not None, "lcd.proxy"),
        (any(r.space != "pixel" for r in _rewards(method)), "a reward of latents"),
    ]
    for there, what in beyond:
        if there:
            raise UserError(f"the benchmark has no bare counterpart of {what}; switch it off in the case")


def _rewards(method: LCD) -> list[Any]:
    return [] if method.guiding is None else list(method.guiding.rewards.values())
