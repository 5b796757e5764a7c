"""Training of the packaged denoiser with its text encoder: the noise-prediction loss on cached latents.

Weighted by min(SNR, 5) / SNR (Min-SNR, 2303.09556): few steps are better spent on what a picture shows than on
its last traces of noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from unifl.losses.denoising import denoising_mse
from unifl.process import DiscreteVP
from unifl.world import pipeline
from unifl.world.dataset import RenderedSet, batch_rows, computed_once
from unifl.world.fitting import FitConfig, fit
from unifl.world.scenes import QUALITIES

_SEED = 21
_MAX_SNR = 5.0
_PALE = {"color": 5.0, "detail": 0.6}
_DROP_CAPTION = 0.1  # so that guidance has an unconditional model to guide away from


@torch.no_grad()
def encode_all(vae: AutoencoderKL, data: RenderedSet, path: Path) -> Float[Tensor, "n c h w"]:
    """Scaled latents of every picture, written once as fp16."""

    def scaled(rows: np.ndarray) -> np.ndarray:
        latents = vae.encode(data.images(rows) * 2 - 1).latent_dist.mean.half()
        return (latents.float() * vae.config.scaling_factor).half().numpy()

    return torch.from_numpy(np.array(computed_once(path, len(data), scaled)))


def pale_chances(quality: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """How often each picture is drawn where dull and soft ones are wanted: by a power of what it lacks in quality.

    Guidance saturates and sharpens. A base model that learned from all levels alike draws nearly everything vivid
    under strong guidance, and would leave feedback on colour nothing to do.
    """
    weights = np.ones(len(quality))
    for axis, power in _PALE.items():
        weights *= (1 - quality[:, QUALITIES.index(axis)].astype(np.float64)) ** power
    return weights / weights.sum()


def fit_denoiser(
    latents: Float[Tensor, "n c h w"],
    data: RenderedSet,
    folder: Path,
    *,
    steps: int,
    early: int,
    pale_from: int,
    batch_size: int = 64,
) -> nn.ModuleDict:
    """Train `unet` and `text` together from nothing.

    Args:
        early: at this step the learning rate has fallen to nothing and starts again; the weights are kept as
            `early.safetensors`: the younger model whose pictures the annotators compare.
        pale_from: at this step the learning rate starts once more, and from here on rows follow `pale_chances`.

    Returns:
        a ModuleDict with the keys "unet" and "text", holding EMA weights.
    """
    torch.manual_seed(_SEED)
    tokens = pipeline.tokenizer()
    model = nn.ModuleDict({"unet": pipeline.denoiser(), "text": pipeline.text_encoder(tokens)})
    ids = tokens([*data.captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    schedule = pipeline.scheduler()
    process = DiscreteVP(schedule.alphas_cumprod)
    num_timesteps = schedule.config.num_train_timesteps

    pale = pale_chances(data.quality)

    def loss(step: int) -> Tensor:
        chances = pale if step >= pale_from else None
        rows = batch_rows(len(latents), batch_size, step, _SEED, chances)
        rng = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        x0 = latents[rows].float()
        eps = torch.randn(x0.shape, generator=rng)
        index = torch.randint(0, num_timesteps, (batch_size,), generator=rng)
        dropped = torch.rand(batch_size, generator=rng) < _DROP_CAPTION
        text = model["text"](torch.where(dropped[:, None], ids[-1:], ids[rows]))[0]
        t = (index + 1) / num_timesteps
        raw = model["unet"](process.add_noise(x0, eps, t), index, text).sample
        alpha, sigma = process.weights(t)
        weight = (_MAX_SNR * (sigma / alpha) ** 2).clamp(max=1)
        return (weight * denoising_mse(raw, x0, eps, alpha, sigma, "epsilon")).mean()

    config = FitConfig(
        steps=steps, learning_rate=1.2e-3, warmup=200, ema_decay=0.999, restarts=(early, pale_from)
    )
    fit(model, loss, config, folder, name="denoiser", snapshots={early: folder / "early.safetensors"})
    return model
