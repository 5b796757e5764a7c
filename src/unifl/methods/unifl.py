"""UniFL: perceptual, aesthetic and adversarial feedback for one diffusion model (arXiv 2404.05595).

    stage 1, quality:       L(theta)      = L_pefl + L_aes                          (eq. 7)
    stage 2, acceleration:  L(theta, phi) = L_G + L_D + L_aes
    L_pefl = sum_i lambda_i Phi_i(m_i(x0'), GT(x))        from a real picture x, diffused half-way   (eq. 4, 8, 9)
    L_aes  = lambda sum_d relu(alpha_d - r_d(x0', c))     from pure noise                            (eq. 5)
    L_G    = -lambda r_a(x0', c),  L_D = -log sigmoid(r_a(x)) - log(1 - sigmoid(r_a(x0')))           (eq. 6)

Every x0' is predicted from the one evaluation of its rollout that carries a graph. A term that is None, or whose
weights are 0, is off and costs nothing, so each component also trains alone.

Differences from the paper, which leaves these open: weights (defaults from ByteEdit, arXiv 2404.04860, and from
ReFL's code); the adversarial rollout starts from noise by default, because a diffused picture still shows through
at the last timestep; `loss: bounded` stops the generator where its picture scores like the real one with the same
caption; the discriminator learns from the very pictures that the generator was just judged by, detached.

Data: annotated pictures with captions, prompts. Copies of the backbone: none (one more role with
`anchors.distance_weight`). Cost of a step: `evaluations`. With the defaults, per picture: stage 1 takes 6.5 + 16.5
evaluations without a graph and 2 with, 2 decodes and 1 encode; stage 2 takes 9.5 + 16.5, 2 and 2 decodes.
Aesthetic terms use the adversarial rollout itself where both settle on the same source and schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from unifl.feedback import Critic, Discriminator, Feedback, at_step
from unifl.losses.reward import hinge
from unifl.methods.adversarial import AdversarialTerm
from unifl.methods.anchors import denoising_anchor, distance_anchor
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import Picture, Rows, picture_from_image, picture_from_noise
from unifl.methods.unifl_config import UniFLConfig, check_parts
from unifl.models.generator import Generator
from unifl.sampling import RolloutConfig


class UniFL:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model.
        config: Which terms, and how.
        rewards: Reward of each axis that `config.aesthetic.levels` names.
        critics: Critics that `config.perceptual.weights` names.
        sources: Data by name; those that the active terms name must be there.
        discriminator: What the discriminator starts from (it is copied): the reward of the detail axis.

    Raises:
        UserError: Something missing, feedback without gradient, or a critic that needs annotations which its
            source does not have.
    """

    def __init__(
        self,
        generator: Generator,
        config: UniFLConfig,
        *,
        rewards: Mapping[str, Feedback] | None = None,
        critics: Mapping[str, Critic] | None = None,
        sources: Mapping[str, Source],
        discriminator: Feedback | None = None,
    ) -> None:
        rewards, critics = rewards or {}, critics or {}
        check_parts(generator, config, rewards, critics, sources, discriminator)
        self.generator = generator
        self.config = config
        self.rewards = {axis: rewards[axis] for axis in config.axes}
        self.critics = {name: critics[name] for name in config.critics}
        self.sources: Mapping[str, Source] = {name: sources[name] for name in config.sources}
        self.roles: tuple[str, ...] = ("reference",) if config.anchors.distance_weight > 0 else ()
        for role in self.roles:
            generator.roles.add(role)
        self.updates: tuple[str, ...] = ("student",)
        parameters: dict[str, list[nn.Parameter]] = {
            "student": list(generator.trainable_parameters().values())
        }
        modules: dict[str, nn.Module] = {}
        self.adversarial: AdversarialTerm | None = None
        self.discriminator: Discriminator | None = None
        if config.adversarial is not None and config.adversarial_on and discriminator is not None:
            self.discriminator = Discriminator.from_feedback(discriminator).to(generator.device)
            self.adversarial = AdversarialTerm(
                generator, self.discriminator, config.adversarial, config.decode
            )
            if config.trains_discriminator:
                self.updates = ("student", "discriminator")
                parameters["discriminator"] = list(self.discriminator.parameters())
                modules["discriminator"] = self.discriminator
        self.parameters: Mapping[str, list[nn.Parameter]] = parameters
        self.modules: Mapping[str, nn.Module] = modules

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """Losses of one micro-batch for "student", then for "discriminator"."""
        if update == "discriminator":
            assert self.adversarial is not None
            return self.adversarial.update(batch)
        rows = {name: Rows(self.generator, batch.data[name]) for name in self.sources}
        output = StepOutput(losses={})
        if self.adversarial is None:
            self._quality(batch, rows, None, output)
            return output
        term, own = self.adversarial, rows[self.adversarial.config.source]
        if term.is_generators_turn(batch.key.step):
            self._quality(batch, rows, term.student(batch, own, output), output)  # section 4.3
        else:
            term.pictures_only(batch, own, output)
        return output

    def _quality(
        self, batch: MicroBatch, rows: Mapping[str, Rows], adversarial: Picture | None, output: StepOutput
    ) -> None:
        """Every term of the student beside the adversarial one."""
        pictures = [] if adversarial is None else [adversarial]
        for source, names in self.config.critics_by_source.items():
            pictures.append(self._perceptual(batch, rows[source], source, names, output))
        if self.config.aesthetic is not None and self.config.axes:
            aesthetic = self._aesthetic(batch, rows[self.config.aesthetic.source], adversarial, output)
            if aesthetic is not adversarial:
                pictures.append(aesthetic)
        self._anchors(batch, rows, pictures, output)

    # --- perceptual feedback (section 4.1, algorithm 1) -----------------------------------------------------

    def _perceptual(
        self, batch: MicroBatch, rows: Rows, source: str, names: Sequence[str], output: StepOutput
    ) -> Picture:
        config = self.config.perceptual
        assert config is not None
        # critics of one source share the rollout: their losses are of the same x0'
        picture = picture_from_image(
            self.generator,
            rows,
            batch.key,
            config,
            self.config.decode,
            start=config.start,
            purpose=f"perceptual/{source}",
        )
        for name in names:
            critic = self.critics[name]
            target = critic.pseudo(rows.batch) if config.gt_source == "pseudo" else rows.batch
            loss = critic(picture.images, target).mean()
            output.losses[f"perceptual/{name}"] = config.weights[name] * loss
            output.metrics[f"critic/{name}"] = loss.detach()
        _record(
            output,
            f"perceptual/{source}" if len(self.config.critics_by_source) > 1 else "perceptual",
            picture,
        )
        return picture

    # --- decoupled aesthetic feedback (section 4.2) ---------------------------------------------------------

    def _aesthetic(
        self, batch: MicroBatch, rows: Rows, adversarial: Picture | None, output: StepOutput
    ) -> Picture:
        config = self.config.aesthetic
        assert config is not None
        picture = adversarial
        if picture is None or not self.config.shares_rollout:
            picture = picture_from_noise(
                self.generator, rows, batch.key, config, self.config.decode, purpose="aesthetic"
            )
            _record(output, "aesthetic", picture)
        for axis, reward in self.rewards.items():
            score = at_step(reward, batch.key)(picture.images, rows.prompts)
            loss = hinge(score, config.levels[axis]).mean()  # eq. 5, one axis
            output.losses[f"aesthetic/{axis}"] = config.weight * config.weights.get(axis, 1.0) * loss
            output.metrics[f"reward/{axis}"] = score.detach().mean()
        return picture

    # --- anchors and accounts -------------------------------------------------------------------------------

    def _anchors(
        self, batch: MicroBatch, rows: Mapping[str, Rows], pictures: list[Picture], output: StepOutput
    ) -> None:
        config = self.config.anchors
        if config.denoising_weight > 0:
            loss = denoising_anchor(self.generator, rows[config.source], batch.key)
            output.losses["anchor/denoising"] = config.denoising_weight * loss
        if config.distance_weight > 0:
            loss = distance_anchor(self.generator, pictures)
            output.losses["anchor/distance"] = config.distance_weight * loss

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step, in expectation over the stops."""
        config, count = self.config, Evaluations(batch_size, trains_text=self.generator.trains_text)
        rollouts: list[RolloutConfig] = []
        if self.adversarial is not None:
            self.adversarial.count(count)
            rollouts.append(self.adversarial.config)
            count.share = (
                1 / self.adversarial.config.generator_every
            )  # the student's other terms keep its turns
        for source, names in config.critics_by_source.items():
            assert config.perceptual is not None
            count.rollout(config.perceptual, source, start=config.perceptual.start)
            rollouts.append(config.perceptual)
            for name in names:
                count.add(f"critic/{name} forward+backward")
                needs, pseudo = self.critics[name].needs, config.perceptual.gt_source == "pseudo"
                count.add(
                    f"critic/{name} forward",
                    ("image" in needs) + (pseudo and bool(needs & {"masks", "semantic"})),
                )
        if config.aesthetic is not None and config.axes and not config.shares_rollout:
            count.rollout(config.aesthetic, config.aesthetic.source)
            rollouts.append(config.aesthetic)
        for axis in config.axes:
            count.add(f"reward/{axis} forward+backward")
        count.anchors(config.anchors, rollouts)
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing but weights is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing but weights is kept between steps."""


def _record(output: StepOutput, name: str, picture: Picture) -> None:
    output.previews[name] = picture.images.detach()
    output.metrics[f"stop/{name}"] = float(picture.stop)
