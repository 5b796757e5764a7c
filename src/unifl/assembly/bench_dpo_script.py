"""A training step laid out as in the example script of diffusers for Diffusion-DPO, to compare with.

That is `examples/research_projects/diffusion_dpo/train_diffusion_dpo.py` (Apache-2.0), written anew from what it
does: in every step the autoencoder encodes both pictures of each pair, eight at a time, and the text encoder the
captions; the student sees winners and losers in one batch, and the reference, its adapters off, the same batch. Loss:
Wallace et al., arXiv 2311.12908, eq. 14, with the script's scale. Only float32 on one process is here: no accelerate,
no autocast, no loading of data, so that this step is if anything faster than the script's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from torch import Tensor

_ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class Draws:
    """What a step draws at random for b pairs.

    Attributes:
        posterior: Noise of the autoencoder's posterior, winners first (2b, c, h, w).
        noise: Noise of the states, which a pair shares (b, c, h, w).
        index: Timesteps (b,).
    """

    posterior: Tensor
    noise: Tensor
    index: Tensor


class DPOScript:
    """The networks and the optimiser of the script, and its step.

    Args:
        pipeline: A Stable Diffusion pipeline (not XL); its UNet gets a LoRA.
        rank: Of the LoRA.
        beta: As the script counts it: half of what `objectives.DPO` means by it.
        learning_rate: Of AdamW.

    Attributes:
        pipeline: See above.
        optimizer: AdamW.
    """

    def __init__(
        self, pipeline: Any, *, rank: int = 16, beta: float = 2500.0, learning_rate: float = 1e-6
    ) -> None:
        self.pipeline, self._beta = pipeline, beta
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            module.requires_grad_(False)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
        pipeline.unet.add_adapter(lora)
        pipeline.unet.train()
        self._trained = [one for one in pipeline.unet.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self._trained, lr=learning_rate)
        self._rate = get_scheduler("constant", self.optimizer)
        self._scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)

    def held(self) -> list[Tensor]:
        """Every tensor of its networks, without the optimiser's moments."""
        modules = (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.unet)
        return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]

    def step(self, pictures: Tensor, prompts: list[str]) -> None:
        """One whole training step.

        Args:
            pictures: Winners and then losers (2b, 3, h, w) in [-1, 1].
            prompts: b captions.
        """
        self.loss(pictures, prompts, self.draw(pictures)).backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self.optimizer.step()
        self._rate.step()
        self.optimizer.zero_grad()

    def draw(self, pictures: Tensor) -> Draws:
        """Fresh draws for a step on these pictures."""
        channels, factor = self.pipeline.vae.config.latent_channels, self.pipeline.vae_scale_factor
        shape = (channels, pictures.shape[2] // factor, pictures.shape[3] // factor)
        pairs = len(pictures) // 2
        return Draws(
            posterior=torch.randn(2 * pairs, *shape),
            noise=torch.randn(pairs, *shape),
            index=torch.randint(0, self._scheduler.config.num_train_timesteps, (pairs,)),
        )

    def loss(self, pictures: Tensor, prompts: list[str], draws: Draws) -> Tensor:
        """The preference loss of b pairs."""
        with torch.no_grad():
            latents = self._encoded(pictures, draws.posterior)
            embeds = self._encode_text(prompts).repeat(2, 1, 1)
        noise, index = draws.noise.repeat(2, 1, 1, 1), draws.index.repeat(2)
        states = self._scheduler.add_noise(latents, noise, index)
        is_v = self._scheduler.config.prediction_type == "v_prediction"
        target = self._scheduler.get_velocity(latents, noise, index) if is_v else noise
        student = self._lead(states, index, embeds, target)
        unet = self.pipeline.unet
        unet.disable_adapters()
        with torch.no_grad():
            reference = self._lead(states, index, embeds, target)
        unet.enable_adapters()
        return -F.logsigmoid(self._beta * (reference - student)).mean()

    def _lead(self, states: Tensor, index: Tensor, embeds: Tensor, target: Tensor) -> Tensor:
        """Errors of the winners minus those of the losers."""
        said = self.pipeline.unet(states, index, encoder_hidden_states=embeds, return_dict=False)[0]
        errors = F.mse_loss(said.float(), target.float(), reduction="none")
        win, lose = errors.mean(dim=(1, 2, 3)).chunk(2)
        return win - lose

    def _encoded(self, pictures: Tensor, noise: Tensor) -> Tensor:
        vae = self.pipeline.vae
        found = []
        for begin in range(0, len(pictures), _ENCODED_AT_ONCE):
            rows = slice(begin, begin + _ENCODED_AT_ONCE)
            posterior = vae.encode(pictures[rows]).latent_dist
            found.append(posterior.mean + posterior.std * noise[rows])
        return torch.cat(found) * vae.config.scaling_factor

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
