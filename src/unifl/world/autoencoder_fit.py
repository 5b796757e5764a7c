"""Training of the packaged autoencoder, arranged so that a laptop can do it in minutes.

Three things make the difference, each found by measuring: convolutions start as a near-linear network (residual
branches at zero, variance kept), or signals fade on the way; most steps see 32 px windows with an object in
them, which cost a quarter and are not mostly background; and errors of colour count extra, or the network is
content with grey objects for thousands of steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from unifl.world import pipeline
from unifl.world.dataset import RenderedSet, batch_rows
from unifl.world.fitting import FitConfig, fit

_KL_WEIGHT = 2e-6
_EDGE_WEIGHT = 1.0
_SQUARE_WEIGHT = 8.0
_CHROMA_WEIGHT = 8.0
_START_LOGVAR = -6.0  # unit variance, the untrained encoder's, would drown the signal for a long time
_WINDOW = 32
_WINDOW_PART = 0.85  # of all steps
_SEED = 11


def fit_autoencoder(data: RenderedSet, folder: Path, *, steps: int, batch_size: int = 24) -> AutoencoderKL:
    """Train, then set `scaling_factor` so that latents have unit variance."""
    torch.manual_seed(_SEED)
    vae = pipeline.autoencoder()
    _start_near_linear(vae)

    def loss(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        if step < _WINDOW_PART * steps:
            images = windows(data.images(batch_rows(len(data), batch_size, step, _SEED)), rng)
        else:
            images = data.images(batch_rows(len(data), batch_size // 2, step, _SEED))
        images = images * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample(generator=rng)).sample.float()
        return reconstruction_loss(output, images) + _KL_WEIGHT * posterior.kl().float().mean()

    fit(vae, loss, FitConfig(steps=steps, learning_rate=2e-3, ema_decay=0.995), folder, name="autoencoder")
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(data.images(batch_rows(len(data), 512, 0, _SEED)) * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


def reconstruction_loss(
    output: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, ""]:
    """Absolute and squared error, squared error of colour, absolute error of edges; pictures in [-1, 1]."""
    error = output - images
    chroma = error - error.mean(1, keepdim=True)
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    squares = _SQUARE_WEIGHT * error.square().mean() + _CHROMA_WEIGHT * chroma.square().mean()
    return error.abs().mean() + squares + _EDGE_WEIGHT * edges


def windows(images: Float[Tensor, "b 3 h w"], rng: torch.Generator) -> Float[Tensor, "b 3 s s"]:
    """Of four random windows of each picture the one with most contrast: usually one with an object."""
    corners = torch.randint(0, images.shape[-1] - _WINDOW + 1, (len(images), 4, 2), generator=rng)
    chosen = []
    for image, places in zip(images, corners.tolist(), strict=True):
        parts = torch.stack([image[:, i : i + _WINDOW, j : j + _WINDOW] for i, j in places])
        chosen.append(parts[parts.std((2, 3)).sum(1).argmax()])
    return torch.stack(chosen)


@torch.no_grad()
def _start_near_linear(vae: AutoencoderKL) -> None:
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            module.bias.zero_()  # type: ignore[union-attr]
        if name.endswith((".conv2", ".to_out.0")):  # last layer of a residual branch
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    vae.quant_conv.weight[pipeline.LATENT_CHANNELS :] *= 0.1
    vae.quant_conv.bias[pipeline.LATENT_CHANNELS :] = _START_LOGVAR
