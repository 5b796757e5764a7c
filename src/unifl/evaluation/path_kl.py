"""How far a model has moved from its start in nats: the divergence between their stochastic samplers.

From one state both samplers step to a Gaussian of the same width, whose mean follows the predicted clean sample, so the
divergence of one step is (Kingma et al., Variational Diffusion Models, arXiv 2107.00630, equations 10 to 13)

    KL_k = 1/2 (SNR(t_{k+1}) - SNR(t_k)) |x0'(x_k) - x0(x_k)|^2          SNR = alpha^2 / sigma^2

and that of the whole path is their sum over states that the model itself visits. In continuous time this is what
Girsanov's theorem gives. The last step, to t = 0, adds no noise, so that its divergence is infinite wherever the two
predictions differ at all; it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unifl.models.generator import Generator
from unifl.models.roles import STUDENT
from unifl.process import Spacing
from unifl.process.process import Process
from unifl.randomness import Key
from unifl.sampling.sampler import sampling_times


def step_kl(
    now: Float[Tensor, "b *d"],
    start: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
    process: Process,
) -> Float64[Tensor, " b"]:
    """Divergence of one ancestral step from t to s, in nats, summed over all dimensions.

    Args:
        now: Clean samples that one model predicts at its states.
        start: Those that the other predicts at the same states.
        t: Present time per sample, in (0, 1].
        s: Earlier time per sample, in (0, t).
        process: Gives alpha and sigma.
    """
    snr = [(alpha / sigma).square() for alpha, sigma in (process.weights(u.double()) for u in (s, t))]
    squared = (now.double() - start.double()).square().flatten(1).sum(1)
    return 0.5 * (snr[0] - snr[1]) * squared


@torch.no_grad()
def path_kl(
    model: Generator,
    start: Generator,
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    *,
    seed: int,
    num_steps: int = 8,
    guidance: float = 1.0,
    spacing: Spacing = "trailing",
    negative_prompt: str | None = None,
    batch_size: int = 8,
) -> Float64[Tensor, " n"]:
    """Divergence of a model's sampler from that of its start, estimated once per picture.

    States are the model's own pictures with noise on them, which have the distribution of its path as far as it is a
    diffusion model.

    Args:
        model: Whose pictures they are.
        start: What it started from, with the same autoencoder.
        images: Drawn by the model, in [0, 1].
        prompts: The prompt of each.
        seed: Of the noise.
        num_steps: Steps of the sampler. Each, but for the last, costs one evaluation of both models, two with guidance.
        guidance: w of u + w (c - u), the same for both.
        spacing: Timesteps of the schedule.
        negative_prompt: Of the unconditional half.
        batch_size: Pictures at once.
    """
    times = sampling_times(start, num_steps, spacing, None)
    found = []
    for first in range(0, len(images), batch_size):
        some = images[first : first + batch_size].to(start.device)
        texts = list(prompts[first : first + batch_size])
        key = Key(seed, 0, tuple(range(first, first + len(some))))
        x0 = start.encode(some)
        total = torch.zeros(len(some), dtype=torch.float64, device=x0.device)
        for index in range(num_steps - 1):
            t, s = (times[at].to(x0).expand(len(some)) for at in (index, index + 1))
            eps = key.normal(f"path/{index}", x0.shape[1:], device=x0.device)
            x_t = start.process.add_noise(x0, eps, t)
            mine, theirs = (
                _predicted(one, x_t, t, texts, guidance, negative_prompt) for one in (model, start)
            )
            total += step_kl(mine, theirs, t, s, start.process)
        found.append(total.cpu())
    return torch.cat(found)


def _predicted(
    model: Generator, x_t: Tensor, t: Tensor, prompts: list[str], guidance: float, negative_prompt: str | None
) -> Float[Tensor, "b c h w"]:
    cond, negative = model.encode_prompts(prompts), None
    if guidance != 1 and not model.embeds_guidance():
        negative = model.encode_negative(negative_prompt, len(prompts))
    return model.denoise(STUDENT, x_t, t, cond, guidance=guidance, negative=negative).x0
