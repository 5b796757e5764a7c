"""A training step laid out as in the example script of diffusers for latent consistency models, to compare with.

That is `examples/consistency_distillation/train_lcm_distill_sd_wds.py` (Apache-2.0), written anew from what it does:
in every step the autoencoder encodes the pictures and the text encoder the captions; the teacher is asked with the
caption and without it, in two passes; three copies of the UNet are held (teacher, student, moving average). Equations:
Luo et al., arXiv 2310.04378, algorithm 1. Only float32 on one process is here: no accelerate, no autocast, no loading
of data, so that this step is if anything faster than the script's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, LatentConsistencyModelPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from torch import Tensor

WIDTH = 256
"""Of the guidance embedding."""

_SIGMA_DATA = 0.5
_TIMESTEP_SCALING = 10.0


@dataclass(frozen=True)
class Draws:
    """What a step draws at random.

    Attributes:
        posterior: Noise of the autoencoder's posterior (b, c, h, w).
        noise: Noise of the states, the same shape.
        index: Points of the solver's grid (b,), from 0.
        scale: w of c + w (c - u), (b,): 0 is no guidance.
    """

    posterior: Tensor
    noise: Tensor
    index: Tensor
    scale: Tensor


class LCMScript:
    """The networks, tables, optimiser and average of the script, and its step.

    Args:
        pipeline: A Stable Diffusion pipeline (not XL); its UNet becomes the teacher.
        grid: Points of the solver's grid.
        scales: Range of w, counted as in `Draws`.
        learning_rate: Of AdamW.
        decay: Of the moving average.

    Attributes:
        pipeline: See above.
        student: The UNet that trains, with an embedding of w.
        target: Its moving average.
        optimizer: AdamW.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        grid: int = 50,
        scales: tuple[float, float] = (5.0, 15.0),
        learning_rate: float = 1e-6,
        decay: float = 0.95,
    ) -> None:
        self.pipeline = pipeline
        self._scales, self._decay = scales, decay
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            module.requires_grad_(False)
        self.student: Any = UNet2DConditionModel.from_config(pipeline.unet.config, time_cond_proj_dim=WIDTH)
        self.student.load_state_dict(pipeline.unet.state_dict(), strict=False)
        self.target: Any = UNet2DConditionModel.from_config(self.student.config)
        self.target.load_state_dict(self.student.state_dict())
        self.target.requires_grad_(False)
        self.student.train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=learning_rate)
        self._rate = get_scheduler("constant", self.optimizer)
        self._scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._is_v = self._scheduler.config.prediction_type == "v_prediction"
        self._abar = self._scheduler.alphas_cumprod
        every = len(self._abar) // grid
        self._grid_steps = every * torch.arange(1, grid + 1) - 1
        self._every = every
        # where the solver lands: one grid point further on, and after the last one at index 0
        self._landing = torch.cat([self._abar[:1], self._abar[self._grid_steps[:-1]]])
        with torch.no_grad():
            self._nothing = self._encode_text([""])

    def held(self) -> list[Tensor]:
        """Every tensor of its networks and tables, without the optimiser's moments."""
        modules = (
            self.pipeline.vae,
            self.pipeline.text_encoder,
            self.pipeline.unet,
            self.student,
            self.target,
        )
        return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]

    def step(self, pictures: Tensor, prompts: list[str]) -> None:
        """One whole training step.

        Args:
            pictures: (b, 3, h, w) in [-1, 1].
            prompts: b captions.
        """
        loss = self.loss(pictures, prompts, self.draw(len(prompts), pictures))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self._rate.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, own in zip(self.target.parameters(), self.student.parameters(), strict=True):
                average.mul_(self._decay).add_(own, alpha=1 - self._decay)

    def draw(self, rows: int, pictures: Tensor) -> Draws:
        """Fresh draws for a step on these pictures."""
        channels, factor = self.pipeline.vae.config.latent_channels, self.pipeline.vae_scale_factor
        shape = (rows, channels, pictures.shape[2] // factor, pictures.shape[3] // factor)
        low, high = self._scales
        return Draws(
            posterior=torch.randn(shape),
            noise=torch.randn(shape),
            index=torch.randint(0, len(self._grid_steps), (rows,)),
            scale=low + (high - low) * torch.rand(rows),
        )

    def loss(self, pictures: Tensor, prompts: list[str], draws: Draws) -> Tensor:
        """The distance between the student's jump and that of the average, one solver step further on."""
        with torch.no_grad():
            posterior = self.pipeline.vae.encode(pictures).latent_dist
            latents = (posterior.mean + posterior.std * draws.posterior) * (
                self.pipeline.vae.config.scaling_factor
            )
            embeds = self._encode_text(prompts)
        start = self._grid_steps[draws.index]
        ahead = (start - self._every).clamp(min=0)
        states = self._scheduler.add_noise(latents, draws.noise, start)
        told = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
            self.pipeline, draws.scale, embedding_dim=WIDTH
        )
        jump = self._jump(self.student, states, start, embeds, told)
        with torch.no_grad():
            x0, eps = self._asked(self.pipeline.unet, states, start, embeds)
            x0_without, eps_without = self._asked(
                self.pipeline.unet, states, start, self._nothing.expand_as(embeds)
            )
            w = draws.scale[:, None, None, None]
            x0, eps = x0 + w * (x0 - x0_without), eps + w * (eps - eps_without)
            abar = self._landing[draws.index][:, None, None, None]
            goal = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
            target = self._jump(self.target, goal, ahead, embeds, told)
        return (torch.sqrt((jump - target) ** 2 + 0.001**2) - 0.001).mean()

    def _encode_text(self, prompts: list[str]) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoded: Tensor = self.pipeline.text_encoder(tokens.input_ids)[0]
        return encoded

    def _jump(self, unet: Any, states: Tensor, index: Tensor, embeds: Tensor, told: Tensor) -> Tensor:
        x0, _ = self._asked(unet, states, index, embeds, told)
        scaled = (_TIMESTEP_SCALING * index)[:, None, None, None]
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / (scaled**2 + _SIGMA_DATA**2).sqrt()
        return skip * states + out * x0

    def _asked(
        self, unet: Any, states: Tensor, index: Tensor, embeds: Tensor, told: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x0 and eps that a network predicts."""
        raw = unet(states, index, timestep_cond=told, encoder_hidden_states=embeds, return_dict=False)[0]
        abar = self._abar[index][:, None, None, None]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        if self._is_v:
            return alpha * states - sigma * raw, alpha * raw + sigma * states
        return (states - sigma * raw) / alpha, raw
