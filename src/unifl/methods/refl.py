"""ReFL: raise one reward by its gradient (Xu et al., ImageReward, arXiv 2304.05977).

From pure noise, denoise without a graph to a random late step, evaluate once with one, predict x0, decode, score:

    L = grad_scale * E relu(margin - r(x0', c))  (+ anchors)

This is the loss of the code that accompanies the paper. The paper adds a pre-training loss: set
`anchors.denoising_weight`. Data: prompts. Copies of the backbone: none (one more role with
`anchors.distance_weight`). Cost of a step: see `evaluations`; with the defaults 34.5 evaluations of the denoiser
without a graph per picture, one with, and one decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from unifl.errors import UserError
from unifl.feedback import Feedback, at_step, require_gradient
from unifl.losses.reward import refl_margin
from unifl.methods.anchors import AnchorConfig, denoising_anchor, distance_anchor
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import (
    DecodeConfig,
    Rows,
    check_pictures,
    need,
    need_source,
    picture_from_noise,
)
from unifl.models.generator import Generator
from unifl.sampling import RolloutConfig


@dataclass(kw_only=True)
class ReFLConfig(RolloutConfig):
    """ReFL with the settings of its published code, but for its leading timesteps (see `RolloutConfig.spacing`)."""

    kind: Literal["refl"] = "refl"
    num_steps: int = 40
    """Steps of the schedule."""
    stop: tuple[int, int] | None = (0, 9)
    """Steps left after the graded evaluation: 30 to 39 of 40 go before it."""
    reward: str = "global"
    """Name of the reward among those handed over."""
    margin: float = 2.0
    """Rewards above it are left alone; 2 standard deviations for a reward of mean 0 and deviation 1."""
    grad_scale: float = 1e-3
    """Weight of the loss."""
    source: str = "prompts"
    """Where prompts come from."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Terms that hold the student near its start; none by default."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Memory of the decoder."""

    def __post_init__(self) -> None:
        self.check("refl")
        self.anchors.check("refl.anchors")
        if not self.grad_scale > 0:
            raise UserError(f"refl.grad_scale is {self.grad_scale}; it must be above 0")


class ReFL:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model.
        config: Settings.
        rewards: Rewards by name; the one of `config.reward` is used.
        sources: Data by name: `config.source`, and `config.anchors.source` for the denoising anchor.

    Raises:
        UserError: A reward or source that is missing, a reward without gradient or on latents, or pictures of another
            size than the model's.
    """

    def __init__(
        self,
        generator: Generator,
        config: ReFLConfig,
        *,
        rewards: Mapping[str, Feedback],
        sources: Mapping[str, Source],
    ) -> None:
        need(config.reward, list(rewards), what="reward", wanted_by="refl.reward")
        generator.check_decode(config.decode.dtype)
        self.generator = generator
        self.config = config
        self.reward = rewards[config.reward]
        require_gradient(
            self.reward,
            method="ReFL",
            example=torch.full((1, 3, *generator.image_size), 0.5, device=generator.device),
        )
        names = {config.source} | ({config.anchors.source} if config.anchors.denoising_weight > 0 else set())
        for name in names:
            need_source(name, sources, wanted_by="refl")
        if config.anchors.denoising_weight > 0:
            check_pictures(config.anchors.source, sources[config.anchors.source], generator.image_size)
        self.sources: Mapping[str, Source] = {name: sources[name] for name in sorted(names)}
        self.roles: tuple[str, ...] = ("reference",) if config.anchors.distance_weight > 0 else ()
        for role in self.roles:
            generator.roles.add(role)
        self.updates: tuple[str, ...] = ("student",)
        self.parameters: Mapping[str, list[nn.Parameter]] = {
            "student": list(generator.trainable_parameters().values())
        }
        self.modules: Mapping[str, nn.Module] = {}

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """The loss of one micro-batch; `update` is "student"."""
        config = self.config
        rows = {name: Rows(self.generator, batch.data[name]) for name in self.sources}
        picture = picture_from_noise(
            self.generator, rows[config.source], batch.key, config, config.decode, purpose="aesthetic"
        )
        climbed = at_step(self.reward, batch.key)
        reward = climbed(picture.images, rows[config.source].prompts)
        output = StepOutput(
            losses={f"reward/{config.reward}": config.grad_scale * refl_margin(reward, config.margin).mean()},
            metrics={
                f"reward/{config.reward}": reward.detach().mean(),
                "stop/aesthetic": float(picture.stop),
            },
            previews={"aesthetic": picture.images.detach()},
        )
        if config.anchors.denoising_weight > 0:
            anchor = denoising_anchor(self.generator, rows[config.anchors.source], batch.key)
            output.losses["anchor/denoising"] = config.anchors.denoising_weight * anchor
        if config.anchors.distance_weight > 0:
            anchor = distance_anchor(self.generator, [picture])
            output.losses["anchor/distance"] = config.anchors.distance_weight * anchor
        return output

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step, in expectation over the stop."""
        config = self.config
        count = Evaluations(batch_size, trains_text=self.generator.trains_text)
        count.rollout(config, config.source)
        count.add(f"reward/{config.reward} forward+backward")
        count.anchors(config.anchors, [config])
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept between steps."""
