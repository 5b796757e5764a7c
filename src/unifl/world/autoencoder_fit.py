"""Training of the packaged autoencoder: pixels and edges in L1, and a whisper of KL."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from unifl.world import pipeline
from unifl.world.dataset import RenderedSet, batch_rows
from unifl.world.fitting import FitConfig, fit

_KL_WEIGHT = 2e-6
_EDGE_WEIGHT = 1.0
_SEED = 11


def edge_difference(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the pictures' first differences; keeps outlines and textures sharp."""
    across = (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean()
    down = (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()
    return across + down


def fit_autoencoder(data: RenderedSet, folder: Path, *, steps: int, batch_size: int = 32) -> AutoencoderKL:
    """Train, then set `scaling_factor` so that latents have unit variance."""
    torch.manual_seed(_SEED)
    vae = pipeline.autoencoder()

    def loss(step: int) -> Tensor:
        images = data.images(batch_rows(len(data), batch_size, step, _SEED)) * 2 - 1
        noise = torch.Generator().manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample(generator=noise)).sample.float()
        pixels = (output - images).abs().mean()
        kl = posterior.kl().float().mean()
        return pixels + _EDGE_WEIGHT * edge_difference(output, images) + _KL_WEIGHT * kl

    fit(vae, loss, FitConfig(steps=steps, learning_rate=1.5e-3, ema_decay=0.995), folder, name="autoencoder")
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(data.images(batch_rows(len(data), 512, 0, _SEED)) * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae
