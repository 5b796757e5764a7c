"""Anchors: terms that hold the student near what it was, for methods that have none of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.anchor import distance_to_start
from unifl.losses.denoising import denoising_mse
from unifl.methods.pictures import Picture, Rows
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.randomness import Key


@dataclass(kw_only=True)
class AnchorConfig:
    """Weights of the anchors; a weight of 0 switches one off and costs nothing."""

    denoising_weight: float = 0.0
    """Of the denoising loss on real pictures (the pre-training loss of ReFL's paper)."""
    distance_weight: float = 0.0
    """Of the squared distance to the starting model's output, at the states where rollouts carry a graph."""
    source: str = "images"
    """Annotated pictures for the denoising loss."""

    def check(self, name: str) -> None:
        """Refuse negative weights."""
        for field in ("denoising_weight", "distance_weight"):
            if not getattr(self, field) >= 0:
                raise UserError(f"{name}.{field} is {getattr(self, field)}; it must be 0 or more")


def denoising_anchor(generator: Generator, rows: Rows, key: Key) -> Float[Tensor, ""]:
    """Mean denoising loss of the student at timesteps uniform over the training schedule, without guidance.

    Of a flow model that is its shifted schedule, see `unifl.models.schedule.FlowSchedule`.
    """
    x0 = rows.latents
    eps = key.normal("anchor/noise", x0.shape[1:], device=x0.device, dtype=x0.dtype)
    index = key.integers("anchor/timestep", 0, generator.num_train_timesteps).to(x0.device)
    t = generator.schedule.time_of_index(index).to(x0.dtype)
    alpha, sigma = generator.process.weights(t)
    x_t = generator.process.add_noise(x0, eps, t)
    raw = generator.denoise("student", x_t, t, rows.cond).raw
    return denoising_mse(raw, x0, eps, alpha, sigma, generator.kind).mean()


def distance_anchor(generator: Generator, pictures: list[Picture]) -> Float[Tensor, ""]:
    """Mean squared distance of the student's raw output to the reference's, at the graded evaluations.

    The student's evaluation is the one that the rollout made anyway; the reference sees the same state, prompt
    and guidance, and reads the prompt with its own text encoder.
    """
    distances = []
    for picture in pictures:
        student = picture.rollout.prediction
        with torch.no_grad():
            cond, negative = _told_to_reference(generator, picture)
            reference = generator.denoise(
                "reference",
                student.x_t,
                student.t,
                cond,
                guidance=picture.rollout.guidance,
                negative=negative,
            )
        distances.append(distance_to_start(student.raw, reference.raw).mean())
    return torch.stack(distances).mean()


def _told_to_reference(generator: Generator, picture: Picture) -> tuple[Conditioning, Conditioning | None]:
    """The prompts of a picture, and those of its unconditional half, as they were read before training."""
    if not generator.trains_text:
        return picture.cond, picture.negative
    cond = generator.encode_prompts(picture.prompts, role="reference")
    if picture.negative is None:
        return cond, None
    return cond, generator.encode_negative(picture.negative_prompt, len(cond), role="reference")
