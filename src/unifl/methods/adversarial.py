"""Adversarial feedback: a reward model that goes on learning to tell real pictures from the generator's.

    L_G(theta) = -lambda r_a(x0', c)                                        (UniFL, arXiv 2404.05595, eq. 6)
    L_D(phi)   = -log sigmoid(r_a(x, c)) - log(1 - sigmoid(r_a(x0', c)))    (+ a gradient penalty on real pictures)

The paper prints the generator's loss linear in the logit, which has no lower bound against a cross-entropy
discriminator: bound it (`loss: bounded`), use ByteEdit's -log sigmoid (arXiv 2404.04860), or hold the slope of the
discriminator with R1. It does not say how often the two take turns. Its pictures start from diffused real ones
(`start: image`); noise, as in sampling, is a choice made here: a diffused picture still shows at the end of a whole
schedule.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unifl.errors import UserError
from unifl.feedback import Discriminator
from unifl.losses.adversarial import (
    approximate_r1_penalty,
    discriminator_bce,
    generator_bounded,
    generator_linear,
    generator_logsigmoid,
    r1_penalty,
)
from unifl.methods.base import MicroBatch, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import DecodeConfig, Picture, Rows, picture_from_image, picture_from_noise
from unifl.models.generator import Generator
from unifl.randomness import Key
from unifl.sampling import RolloutConfig


@dataclass(kw_only=True)
class R1Config:
    """weight / 2 * |grad of the logit|^2 at real pictures, summed over pixels (Mescheder et al., arXiv 1801.04406)."""

    kind: Literal["r1"] = "r1"
    weight: float = 10.0
    """gamma of the paper."""

    def __post_init__(self) -> None:
        _require_positive("adversarial.regularization.weight", self.weight)


@dataclass(kw_only=True)
class ApproximateR1Config:
    """weight * (r(x) - r(x + sigma noise))^2: no second derivative (Lin et al., arXiv 2501.08316)."""

    kind: Literal["approximate_r1"] = "approximate_r1"
    weight: float = 100.0
    """lambda of the paper, for pictures."""
    sigma: float = 0.01
    """Deviation of the noise, in units of pixels in [0, 1]."""

    def __post_init__(self) -> None:
        _require_positive("adversarial.regularization.weight", self.weight)
        _require_positive("adversarial.regularization.sigma", self.sigma)


@dataclass(kw_only=True)
class Phase:
    """A leg of a progressive schedule, with its own number of sampler steps."""

    steps: int
    """Training steps that it lasts."""
    num_steps: int
    """Steps of the sampler's schedule."""
    stop: tuple[int, int] | None = None
    """Steps left after the graded evaluation; null is the whole schedule."""


@dataclass(kw_only=True)
class AdversarialConfig(RolloutConfig):
    """Adversarial feedback: a reward model that trains, on steps spread over the whole schedule."""

    stop: tuple[int, int] | None = None
    """Steps left after the graded evaluation; null is the whole schedule, as in the paper."""
    start: Literal["noise", "image"] = "noise"
    """Pure noise, as in sampling, or a real picture diffused to the first state, which still leaks it."""
    loss: Literal["linear", "bounded", "logsigmoid"] = "linear"
    """Of the generator. linear: -r, the paper's, without a lower bound; bounded: relu(r(real) - r), which ends
    where the picture scores like the real one of its caption; logsigmoid: -log sigmoid(r), as in ByteEdit."""
    weight: float = 0.05
    """Weight of the generator's loss; the paper gives none, 0.05 is ByteEdit's."""
    train_discriminator: bool = True
    """False freezes it, for comparison: an ordinary reward, which is hacked sooner."""
    regularization: R1Config | ApproximateR1Config | None = None
    """Of the discriminator's slope at real pictures; off when null."""
    generator_every: int = 1
    """Training steps from one update of the student to the next; the discriminator learns in between."""
    discriminator_every: int = 1
    """Training steps from one update of the discriminator to the next."""
    phases: list[Phase] = field(default_factory=list)
    """Legs that come before the schedule above, one after the other, as ByteEdit goes from 20 steps to 8."""
    real: Literal["data", "reconstruction"] = "data"
    """Real pictures as they are, or as the autoencoder gives them back, so that its traces tell nothing."""
    source: str = "images"
    """Pictures with captions."""

    def __post_init__(self) -> None:
        self.check("adversarial")
        if not self.weight >= 0:
            raise UserError(f"adversarial.weight is {self.weight}; it must be 0 or more")
        self._check_turns()
        for number, phase in enumerate(self.phases):
            if phase.steps < 1:
                raise UserError(f"adversarial.phases[{number}].steps is {phase.steps}; it must be at least 1")
            replace(self, phases=[], num_steps=phase.num_steps, stop=phase.stop)  # checks the schedule

    def _check_turns(self) -> None:
        for name in ("generator_every", "discriminator_every"):
            if getattr(self, name) < 1:
                raise UserError(f"adversarial.{name} is {getattr(self, name)}; it must be at least 1")
        if self.generator_every > 1 and self.discriminator_every > 1:
            raise UserError(
                "adversarial.generator_every and discriminator_every are both above 1, which leaves training steps "
                "without any update; set one of them to 1"
            )
        if self.generator_every > 1 and not self.train_discriminator:
            raise UserError(
                "adversarial.generator_every is above 1 although the discriminator is frozen; set it to 1"
            )
        if self.regularization is not None and not self.train_discriminator:
            raise UserError(
                "adversarial.regularization acts on a discriminator that trains; set it to null, or "
                "train_discriminator to true"
            )

    def at(self, step: int) -> AdversarialConfig:
        """The settings of a training step, counted from 0: those of its phase, or these once all phases are over."""
        for phase in self.phases:
            if step < phase.steps:
                return replace(self, phases=[], num_steps=phase.num_steps, stop=phase.stop)
            step -= phase.steps
        return self


class AdversarialTerm:
    """Both sides of the game: the student's term, and the update of the discriminator.

    Args:
        generator: The model in training.
        discriminator: A trainable copy of a reward.
        config: Settings, with a weight above 0.
        decode: How pictures are decoded.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        config: AdversarialConfig,
        decode: DecodeConfig,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.config = config
        self.decode = decode

    def is_generators_turn(self, step: int) -> bool:
        """Whether the student trains in this training step."""
        return step % self.config.generator_every == 0

    def _is_discriminators_turn(self, step: int) -> bool:
        return self.config.train_discriminator and step % self.config.discriminator_every == 0

    def student(self, batch: MicroBatch, rows: Rows, output: StepOutput) -> Picture:
        """The student's loss and figures, added to `output`; keeps its pictures for the discriminator."""
        picture = self._picture(rows, batch.key)
        self._record(output, picture)
        fake = self.discriminator.judge(picture.images, rows.prompts)
        output.losses["adversarial"] = self.config.weight * self._generator_loss(fake, rows).mean()
        output.metrics["adversarial/fake_logit"] = fake.detach().mean()
        self._keep(batch, rows, picture)
        return picture

    @torch.no_grad()
    def pictures_only(self, batch: MicroBatch, rows: Rows, output: StepOutput) -> None:
        """Pictures for the discriminator in a training step in which the student does not train."""
        picture = self._picture(rows, batch.key)
        self._record(output, picture)
        self._keep(batch, rows, picture)

    def update(self, batch: MicroBatch) -> StepOutput:
        """The discriminator's losses on the pictures that the student's update made, detached."""
        if not self._is_discriminators_turn(batch.key.step):
            return StepOutput(losses={})
        real, fake, prompts = batch.scratch.pop("adversarial")
        exact = isinstance(self.config.regularization, R1Config)
        real = real.detach().requires_grad_(exact)
        # fused attention has no second derivative, which exact R1 takes
        with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
            real_logit, fake_logit = self.discriminator(torch.cat([real, fake]), prompts * 2).chunk(2)
        right = torch.cat([real_logit > 0, fake_logit < 0]).float().mean()
        output = StepOutput(
            losses={"discriminator": discriminator_bce(real_logit, fake_logit).mean()},  # eq. 6
            metrics={
                "discriminator/real_logit": real_logit.detach().mean(),
                "discriminator/fake_logit": fake_logit.detach().mean(),
                "discriminator/accuracy": right,
            },
        )
        self._regularize(output, real_logit, real, prompts, batch.key)
        return output

    def _picture(self, rows: Rows, key: Key) -> Picture:
        config = self.config.at(key.step)
        if config.start == "noise":
            return picture_from_noise(self.generator, rows, key, config, self.decode, purpose="adversarial")
        return picture_from_image(
            self.generator, rows, key, config, self.decode, start=config.num_steps, purpose="adversarial"
        )

    def _record(self, output: StepOutput, picture: Picture) -> None:
        output.previews["adversarial"] = picture.images.detach()
        output.metrics["stop/adversarial"] = float(picture.stop)

    def _keep(self, batch: MicroBatch, rows: Rows, picture: Picture) -> None:
        if self._is_discriminators_turn(batch.key.step):
            batch.scratch["adversarial"] = (self._real(rows), picture.images.detach(), rows.prompts)

    def _real(self, rows: Rows) -> Float[Tensor, "b 3 h w"]:
        return rows.batch.images if self.config.real == "data" else rows.reconstruction

    def _generator_loss(self, fake: Float[Tensor, " b"], rows: Rows) -> Float[Tensor, " b"]:
        if self.config.loss == "linear":
            return generator_linear(fake)  # eq. 6
        if self.config.loss == "logsigmoid":
            return generator_logsigmoid(fake)
        with torch.no_grad():
            real = self.discriminator.judge(self._real(rows), rows.prompts)
        # each picture against the real one with its caption, so that the loss does not depend on how a batch is cut
        return generator_bounded(fake - real, level=0.0)

    def _regularize(
        self,
        output: StepOutput,
        logit: Float[Tensor, " b"],
        real: Float[Tensor, "b 3 h w"],
        prompts: list[str],
        key: Key,
    ) -> None:
        how = self.config.regularization
        if how is None:
            return
        if isinstance(how, R1Config):
            penalty = r1_penalty(logit, real) / 2
        else:
            noise = key.normal("r1/noise", real.shape[1:], device=real.device, dtype=real.dtype)
            penalty = approximate_r1_penalty(logit, self.discriminator(real + how.sigma * noise, prompts))
        output.losses["discriminator/r1"] = how.weight * penalty.mean()

    def count(self, count: Evaluations) -> None:
        """Evaluations of one training step, once all phases are over, in the mean over turns and stops."""
        config, turn = self.config, 1 / self.config.generator_every
        judged = 1 / config.discriminator_every if config.train_discriminator else 0.0
        start = config.num_steps if config.start == "image" else None
        bounded = config.loss == "bounded"
        if start is not None:
            count.latents(config.source)
        if config.real == "reconstruction":
            count.share = max(turn * bounded, judged)
            count.latents(config.source)
            count.add("vae decode")
        count.share = turn
        count.rollout(config, config.source, start=start)
        count.add("discriminator forward+backward")
        count.add("discriminator forward", float(bounded))
        count.share = 1 - turn
        count.pictures_only(config, start=start)
        count.share = judged
        more = isinstance(config.regularization, ApproximateR1Config)
        count.add("discriminator forward+backward", 2 + more)
        count.share = 1.0


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} is {value}; it must be above 0")
