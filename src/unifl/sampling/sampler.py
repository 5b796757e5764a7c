"""Pictures from prompts, reproducible sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.models.conditioning import Conditioning, Prediction
from unifl.models.generator import Generator
from unifl.models.schedule import require_diffusion
from unifl.process import ConsistencySampler, Spacing, ddim_step
from unifl.randomness import Key


@torch.no_grad()
def sample(
    generator: Generator,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    num_steps: int = 20,
    guidance: float = 1.0,
    spacing: Spacing = "trailing",
    consistency: ConsistencySampler | None = None,
    negative_prompt: str | None = None,
    users: Float[Tensor, "n vectors width"] | None = None,
    role: str = "student",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Draw one picture per prompt, with deterministic DDIM unless a consistency sampler is given.

    For a flow model the same steps are those of Euler, at the times of its own scheduler.

    The noise of a picture depends on (seed, index) alone: not on the batch size, the order, the number of steps
    or the weights. Two models sampled with the same seed are therefore paired picture by picture.

    Args:
        generator: The model.
        prompts: n prompts.
        seed: Seed of the noise.
        indices: Index of each picture's noise; 0, ..., n - 1 by default. For several pictures of one prompt,
            repeat the prompt with further indices.
        num_steps: Network evaluations per picture.
        guidance: w of u + w (c - u); 1 is none and costs half. A model that embeds guidance is told w, and costs half
            whatever it is.
        spacing: Timesteps of the schedule; trailing ones begin at pure noise, as the draw does, and are the default of
            training too.
        consistency: How a consistency model is sampled; it has timesteps of its own, in place of `spacing`.
        negative_prompt: The unconditional half's prompt; None takes what the pipeline takes when given none.
        users: For whom each picture is, for a model with a user adapter; None draws for unknown users. The mean of two
            users stands between them. The unconditional half of guidance is for an unknown user.
        role: Whose weights.
        batch_size: Pictures at once.
        progress: Called with (pictures done, n) after every batch.

    Returns:
        Pictures in [0, 1], float32, on the CPU.

    Raises:
        UserError: No prompts, another number of indices or users, users of a model without an adapter for them, or
            settings out of range.
    """
    indices = list(range(len(prompts)) if indices is None else indices)
    if not prompts:
        raise UserError("there is no prompt to draw; pass at least one")
    if len(indices) != len(prompts):
        raise UserError(f"{len(indices)} indices for {len(prompts)} prompts; give one per prompt")
    if users is not None and len(users) != len(prompts):
        raise UserError(f"{len(users)} users for {len(prompts)} prompts; give one per prompt")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if not guidance >= 0:
        raise UserError(f"guidance is {guidance}; it must be 0 or more (1 is no guidance)")
    grid = sampling_times(generator, num_steps, spacing, consistency)
    pictures = []
    for start in range(0, len(prompts), batch_size):
        some = list(prompts[start : start + batch_size])
        key = Key(seed, 0, tuple(indices[start : start + batch_size]))
        cond = generator.encode_prompts(some, role=role)
        if users is not None:
            cond = replace(cond, user=users[start : start + batch_size])
        negative = None
        if guidance != 1 and not generator.embeds_guidance(role):
            negative = generator.encode_negative(negative_prompt, len(some), role=role)

        def denoise(
            x_t: Tensor, t: Tensor, cond: Conditioning = cond, negative: Conditioning | None = negative
        ) -> Prediction:
            return generator.denoise(role, x_t, t, cond, guidance=guidance, negative=negative)

        x_t = _descend(generator, denoise, key, grid.to(cond.embeds.device), consistency)
        pictures.append(generator.decode(x_t).float().clamp(0, 1).cpu())
        if progress is not None:
            progress(start + len(some), len(prompts))
    return torch.cat(pictures)


def sampling_times(
    generator: Generator, num_steps: int, spacing: Spacing, consistency: ConsistencySampler | None
) -> Float[Tensor, " n"]:
    """The times that `sample` visits; without a consistency sampler the last is 0, where nothing is evaluated.

    Raises:
        UserError: Settings that do not go with the model.
    """
    if consistency is None:
        return generator.schedule.times(num_steps, spacing)
    require_diffusion(generator.schedule, wanted_by="a consistency sampler")
    return consistency.times(num_steps, generator.num_train_timesteps)


def _descend(
    generator: Generator,
    denoise: Callable[[Tensor, Tensor], Prediction],
    key: Key,
    times: Float[Tensor, " n"],
    consistency: ConsistencySampler | None,
) -> Float[Tensor, "b c h w"]:
    """From noise to clean latents; with DDIM the last of the times is 0, where nothing is evaluated."""
    x_t = key.normal("sample", generator.latent_shape, device=times.device)
    evaluated = len(times) - (consistency is None)
    for index in range(evaluated):
        step = denoise(x_t, times[index].expand(len(key)))
        if consistency is None:
            x_t = ddim_step(step.x0, step.eps, times[index + 1].expand(len(key)), generator.process)
        else:
            x_t = _consistency_step(generator, consistency, step, key, times, index)
    return x_t


def _consistency_step(
    generator: Generator,
    sampler: ConsistencySampler,
    step: Prediction,
    key: Key,
    times: Float[Tensor, " n"],
    index: int,
) -> Float[Tensor, "b c h w"]:
    is_last = index == len(times) - 1
    noise = None
    if sampler.adds_noise(is_last):
        noise = key.normal(f"sample/{index}", generator.latent_shape, device=step.x_t.device)
    then = None if is_last else times[index + 1].expand(len(key))
    return sampler.step(
        step.x_t, step.x0, step.eps, step.t, then, noise, generator.process, generator.num_train_timesteps
    )
