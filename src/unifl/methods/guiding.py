"""Rewards of a prediction in one step, which guide a distillation (RG-LCD, Li et al., arXiv 2403.11027).

    L = L_LCD - sum_k weight_k mean R_k(D(x0'), c)

A consistency model predicts a clean sample from every time, so every time is rewarded; ReFL has to wait for a late one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.feedback import Feedback, at_step, require_gradient
from unifl.losses.reward import hinge
from unifl.methods.base import StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import DecodeConfig, need
from unifl.models.generator import Generator
from unifl.randomness import Key


@dataclass(kw_only=True)
class GuidingConfig:
    """Which rewards, and how strongly they pull."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each reward by its name. It counts on the reward's own scale: published weights of 1 go with cosines,
    not with logits a hundred times as large."""
    balance: Literal["weights", "gradient_norm"] = "weights"
    """gradient_norm scales each reward so that a weight of 1 pulls at the network's output as hard as the distillation
    does."""
    levels: dict[str, float] = field(default_factory=dict)
    """Levels above which a reward gains nothing, by its name: -relu(level - r) in its place, as published code takes
    ImageReward with 2. Rewards without one have no bound."""
    batch_size: int | None = None
    """Rows of a micro-batch that are decoded and rewarded; null is all. Decoding with a graph is what takes memory."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise UserError(f"rewards.weights.{name} is {weight}; it must be 0 or more")
        for name in self.levels:
            if name not in self.weights:
                raise UserError(
                    f"rewards.levels names {name!r}, which has no weight; give it one, or no level"
                )
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                f"rewards.batch_size is {self.batch_size}; it must be at least 1, or null for all"
            )

    @property
    def active(self) -> list[str]:
        """Rewards whose weight is not 0."""
        return [name for name, weight in self.weights.items() if weight > 0]


class GuidingTerm:
    """The rewards of a student's prediction.

    Args:
        generator: The model in training.
        config: Which rewards.
        rewards: By name; those of weight 0 may be missing.
        decode: How the prediction is decoded for those that read pixels.
        wanted_by: Name of the method, for messages.

    Raises:
        UserError: A reward that is missing or gives no gradient.
    """

    def __init__(
        self,
        generator: Generator,
        config: GuidingConfig,
        rewards: Mapping[str, Feedback],
        decode: DecodeConfig,
        *,
        wanted_by: str,
    ) -> None:
        self.generator, self.config, self.decode = generator, config, decode
        for name in config.active:
            need(name, list(rewards), what="reward", wanted_by=f"{wanted_by}.rewards.weights")
        self.rewards = {name: rewards[name] for name in config.active}
        sizes = {"pixel": (3, *generator.image_size), "latent": generator.latent_shape}
        for reward in self.rewards.values():
            example = torch.full((1, *sizes[reward.space]), 0.5, device=generator.device)
            require_gradient(reward, method=wanted_by.upper(), example=example, space=reward.space)

    def add(
        self,
        output: StepOutput,
        prediction: Float[Tensor, "b c h w"],
        prompts: Sequence[str],
        key: Key,
        *,
        raw: Float[Tensor, "b c h w"],
        loss: Float[Tensor, ""],
    ) -> None:
        """Add the losses and figures of one micro-batch.

        Args:
            output: Gets them.
            prediction: The student's clean latents, scaled, with graph.
            prompts: b texts.
            key: Of the micro-batch.
            raw: The network's output, from which both the prediction and the loss follow.
            loss: The distillation's; its gradient at `raw` is the measure of `balance: gradient_norm`.
        """
        rows = min(self.config.batch_size or len(prompts), len(prompts))
        rewarded = prediction[:rows]
        balanced = self.config.balance == "gradient_norm"
        # balanced, each reward's pull is needed by itself, on its own way back; else all share that of the step
        seen = rewarded.detach().requires_grad_() if balanced else rewarded
        scores = self._scores(seen, list(prompts[:rows]), key, output)
        for number, (name, found) in enumerate(scores.items()):
            output.metrics[f"reward/{name}"] = found.detach().mean()
            score = self._bounded(name, found).mean()
            weight: float | Tensor = self.config.weights[name]
            if balanced:
                (pull,) = torch.autograd.grad(score, seen, retain_graph=number < len(scores) - 1)
                weight = weight * _relative_norm(loss, rewarded, pull, raw)
                score = _carrying(score.detach(), pull, rewarded)
            output.losses[f"reward/{name}"] = -weight * score

    def _scores(self, latents: Tensor, prompts: list[str], key: Key, output: StepOutput) -> dict[str, Tensor]:
        """Each reward, one number per row, with a graph that ends at the latents."""
        rewards = {name: at_step(reward, key) for name, reward in self.rewards.items()}
        if not any(reward.space == "pixel" for reward in rewards.values()):
            return {name: reward(latents, prompts).float() for name, reward in rewards.items()}
        images = self.generator.decode(
            latents,
            grad=True,
            checkpoint=self.decode.checkpoint,
            slicing=self.decode.slicing,
            dtype=self.decode.dtype,
        )
        output.previews["prediction"] = images.detach()
        given = {"pixel": images, "latent": latents}
        return {name: reward(given[reward.space], prompts).float() for name, reward in rewards.items()}

    def _bounded(self, name: str, scores: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        level = self.config.levels.get(name)
        return scores if level is None else -hinge(scores, level)

    def count(self, count: Evaluations) -> None:
        """Evaluations per training step."""
        before, rows = count.share, min(self.config.batch_size or count.batch_size, count.batch_size)
        count.share = before * rows / count.batch_size
        if any(reward.space == "pixel" for reward in self.rewards.values()):
            count.add("vae decode forward+backward")
        for name in self.rewards:
            count.add(f"reward/{name} forward+backward")
        count.share = before


def _relative_norm(loss: Tensor, prediction: Tensor, pull: Tensor, raw: Tensor) -> Tensor:
    """How hard a distillation pulls at the network's output, relative to a reward's pull at the prediction."""
    (rewarding,) = torch.autograd.grad(prediction, raw, grad_outputs=pull, retain_graph=True)
    (distilling,) = torch.autograd.grad(loss, raw, retain_graph=True)
    return distilling.norm() / rewarding.norm().clamp(min=1e-12)


def _carrying(value: Tensor, gradient: Tensor, at: Tensor) -> Tensor:
    """A scalar of this value whose gradient at a tensor is the one given: no second way back through the decoder."""
    return value + (gradient * (at - at.detach())).sum()
