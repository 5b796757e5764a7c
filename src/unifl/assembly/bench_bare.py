"""A training step written by hand: the calls of torch and diffusers that its networks need, and nothing else.

Losses are plain means of what the networks say, noise is drawn in one go, and there are no keys, caches, roles,
checks or records. The chain of networks is the step's own, so both backward passes are of the same size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unifl.data import Batch
from unifl.errors import UserError
from unifl.methods.base import MicroBatch
from unifl.methods.refl import ReFL
from unifl.methods.unifl import UniFL
from unifl.methods.unifl_config import UniFLConfig
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.process import index_of_time, time_grid
from unifl.sampling import RolloutConfig, draw_guidance


@dataclass
class BarePicture:
    """One rollout, decoded, and the networks that look at the picture.

    Attributes:
        timesteps: Indices that the denoiser is evaluated at; the last evaluation carries the graph.
        weights: (alpha, sigma) at each of them.
        told: Arguments of the denoiser beside state and timestep, with a prompt alone.
        told_both: The same for a batch of both halves of guidance; None without guidance.
        guidance: w of the evaluations without a graph, and of the one with it.
        noise_shape: Of the first state.
        images: Real pictures that the rollout starts from; None starts from noise.
        prompts: For rewards that read them.
        readers: Networks that judge the picture, with gradient, and whether they read the prompt.
        real_readers: Networks that see the real pictures, without a graph.
        judged: Whether the discriminator judges this picture, and learns from it.
    """

    timesteps: list[int]
    weights: list[tuple[float, float]]
    told: dict[str, Any]
    told_both: dict[str, Any] | None
    guidance: tuple[float, float]
    noise_shape: tuple[int, ...]
    images: Tensor | None
    prompts: list[str]
    readers: list[tuple[Any, bool]] = field(default_factory=list)
    real_readers: list[nn.Module] = field(default_factory=list)
    judged: bool = False


@dataclass
class BareStep:
    """All rollouts of a step, their backward pass, and the discriminator's.

    Attributes:
        pipeline: The diffusers pipeline with the LoRA that trains.
        pictures: See `BarePicture`.
        parameters: Everything that gets a gradient.
        discriminator: Its network and whether it reads prompts; None without one.
        real: Real pictures that it compares with.
        reconstruct: Whether it sees them as the autoencoder gives them back.
        learns: Whether the discriminator has an update.
        reads_real: Whether the generator's loss needs its logits of real pictures.
    """

    pipeline: Any
    pictures: list[BarePicture]
    parameters: list[nn.Parameter]
    discriminator: tuple[nn.Module, bool] | None = None
    real: Tensor | None = None
    reconstruct: bool = False
    learns: bool = False
    reads_real: bool = False

    def __call__(self) -> None:
        """Run it; gradients are dropped at the end."""
        losses: list[Tensor] = []
        to_learn: list[tuple[Tensor, list[str]]] = []
        real = self._real()
        if self.discriminator is not None:
            self.discriminator[0].requires_grad_(False)
        for picture in self.pictures:
            images = draw(self.pipeline, picture)
            losses += [
                mean_of(read(network, images, picture.prompts if p else None))
                for network, p in picture.readers
            ]
            with torch.no_grad():
                for network in picture.real_readers:
                    network(picture.images)
            if picture.judged:
                losses.append(self._judge(images, picture.prompts).mean())
                if self.reads_real:
                    with torch.no_grad():
                        self._judge(real, picture.prompts)
                to_learn.append((images.detach(), picture.prompts))
        torch.stack(losses).sum().backward()
        if self.learns and self.discriminator is not None:
            self.discriminator[0].requires_grad_(True)
            for fake, prompts in to_learn:
                self._judge(torch.cat([real, fake]), prompts * 2).mean().backward()
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def _real(self) -> Any:
        if self.real is None or not self.reconstruct or not (self.learns or self.reads_real):
            return self.real
        vae = self.pipeline.vae
        return (
            vae.decode(_encode(vae, self.real) / vae.config.scaling_factor, return_dict=False)[0] * 0.5 + 0.5
        )

    def _judge(self, images: Tensor, prompts: list[str]) -> Tensor:
        assert self.discriminator is not None
        network, reads_prompt = self.discriminator
        return read(network, images, prompts if reads_prompt else None)


def draw(pipeline: Any, picture: BarePicture) -> Tensor:
    """DDIM without a graph, one evaluation with one, and the decoded x0: pictures (b, 3, h, w), not clamped."""
    unet, vae = pipeline.unet, pipeline.vae
    is_v = pipeline.scheduler.config.prediction_type == "v_prediction"
    last = len(picture.timesteps) - 1
    with torch.no_grad():
        alpha, sigma = picture.weights[0]
        if picture.images is None:
            x = torch.randn(picture.noise_shape)
        else:
            latents = _encode(vae, picture.images)
            x = alpha * latents + sigma * torch.randn_like(latents)
        for position in range(last):
            alpha, sigma = picture.weights[position]
            raw = _evaluate(unet, x, picture.timesteps[position], picture, picture.guidance[0])
            x0 = alpha * x - sigma * raw if is_v else (x - sigma * raw) / alpha
            eps = sigma * x + alpha * raw if is_v else raw
            alpha, sigma = picture.weights[position + 1]
            x = alpha * x0 + sigma * eps
    alpha, sigma = picture.weights[last]
    raw = _evaluate(unet, x, picture.timesteps[last], picture, picture.guidance[1])
    x0 = alpha * x - sigma * raw if is_v else (x - sigma * raw) / alpha
    return vae.decode(x0 / vae.config.scaling_factor, return_dict=False)[0] * 0.5 + 0.5


def _encode(vae: Any, images: Tensor) -> Tensor:
    return vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor


def _evaluate(unet: nn.Module, x: Tensor, timestep: int, picture: BarePicture, guidance: float) -> Tensor:
    if guidance == 1:
        return unet(x, timestep, **picture.told, return_dict=False)[0]
    assert picture.told_both is not None
    without, given = unet(torch.cat([x, x]), timestep, **picture.told_both, return_dict=False)[0].chunk(2)
    return without + guidance * (given - without)


def read(network: Any, images: Tensor, prompts: list[str] | None) -> Any:
    """What a network says of pictures, told the prompts where it reads them."""
    return network(images) if prompts is None else network(images, prompts)


def mean_of(output: Any) -> Tensor:
    """One number that depends on every output of a network."""
    parts = [output] if isinstance(output, Tensor) else list(output)
    return torch.stack([part.mean() for part in parts]).sum()


# --- what a step evaluates, read off its method; none of this is timed ---------------------------------------


def prepare_bare(method: ReFL | UniFL, batch: MicroBatch) -> BareStep:
    """The bare counterpart of a step on these rows, with the same draws of guidance and stops.

    Args:
        method: Whose networks are to be evaluated.
        batch: The rows and the key of the step.

    Raises:
        UserError: The method evaluates something that has no bare counterpart here (anchors, a text encoder that
            trains, an adversarial rollout from pictures).
    """
    _check_known(method)
    parameters = [p for update in method.updates for p in method.parameters[update]]
    step = BareStep(method.generator.pipeline, [], parameters)
    if isinstance(method, ReFL):
        picture = _picture(method, method.config, method.config.source, batch, "aesthetic")
        picture.readers.append(reader_of(method.reward))
        step.pictures.append(picture)
    else:
        _prepare_unifl(method, batch, step)
    return step


def _prepare_unifl(method: UniFL, batch: MicroBatch, step: BareStep) -> None:
    config = method.config
    for source, names in config.critics_by_source.items():
        assert config.perceptual is not None
        start, pseudo = config.perceptual.start, config.perceptual.gt_source == "pseudo"
        picture = _picture(method, config.perceptual, source, batch, f"perceptual/{source}", start=start)
        for name in names:
            critic: Any = method.critics[name]
            picture.readers.append((critic.network, False))
            annotated = bool(critic.needs & {"masks", "semantic"})
            picture.real_readers += [critic.network] * (("image" in critic.needs) + (pseudo and annotated))
        step.pictures.append(picture)
    adversarial = None
    if config.adversarial is not None and config.adversarial_on:
        assert method.discriminator is not None
        adversarial = _picture(method, config.adversarial, config.adversarial.source, batch, "adversarial")
        adversarial.judged = True
        step.pictures.append(adversarial)
        step.discriminator = (method.discriminator.network, "prompt" in method.discriminator.needs)
        step.real = batch.data[config.adversarial.source].images
        step.reconstruct = config.adversarial.real == "reconstruction"
        step.learns, step.reads_real = config.trains_discriminator, config.adversarial.loss == "bounded"
    if config.aesthetic is not None and config.axes:
        shared = adversarial if config.shares_rollout else None
        picture = shared or _picture(method, config.aesthetic, config.aesthetic.source, batch, "aesthetic")
        if shared is None:
            step.pictures.append(picture)
        picture.readers += [reader_of(reward) for reward in method.rewards.values()]


def _picture(
    method: ReFL | UniFL,
    config: RolloutConfig,
    source: str,
    batch: MicroBatch,
    purpose: str,
    *,
    start: int | None = None,
) -> BarePicture:
    generator, rows = method.generator, batch.data[source]
    prompts = rows.prompts if isinstance(rows, Batch) else list(rows)
    cond = generator.encode_prompts(prompts)
    both = None
    if config.needs_negative:
        both = Conditioning.cat([generator.encode_negative(config.negative_prompt, len(prompts)), cond])
    guidance = draw_guidance(config.guidance, batch.key, f"{purpose}/guidance")
    first = config.num_steps - (config.num_steps if start is None else start)
    last = config.num_steps - 1 - config.draw_stop(batch.key, purpose, start=start)
    T = generator.num_train_timesteps
    times = time_grid(config.num_steps, config.spacing, T, generator.steps_offset)[first : last + 1]
    timesteps = [int(index) for index in index_of_time(times, T)]
    table = generator.pipeline.scheduler.alphas_cumprod
    return BarePicture(
        timesteps=timesteps,
        weights=[(float(table[i]) ** 0.5, (1 - float(table[i])) ** 0.5) for i in timesteps],
        told=arguments_of(generator, cond),
        told_both=None if both is None else arguments_of(generator, both),
        guidance=(guidance, guidance if config.grad_guidance is None else config.grad_guidance),
        noise_shape=(len(prompts), *generator.latent_shape),
        images=None if start is None else rows.images,
        prompts=prompts,
    )


def arguments_of(generator: Generator, cond: Conditioning) -> dict[str, Any]:
    """What a UNet is told beside state and timestep."""
    told: dict[str, Any] = {"encoder_hidden_states": cond.embeds}
    if generator.is_xl:
        told["added_cond_kwargs"] = {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    return told


def reader_of(reward: Any) -> tuple[Any, bool]:
    """The network of a reward, or the reward itself where it is a function."""
    return getattr(reward, "network", None) or reward, "prompt" in reward.needs


def _check_known(method: ReFL | UniFL) -> None:
    config = method.config
    beyond = [
        (config.anchors.denoising_weight > 0 or config.anchors.distance_weight > 0, "anchors"),
        (method.generator.trains_text, "a text encoder that trains"),
    ]
    if isinstance(config, UniFLConfig) and config.adversarial is not None and config.adversarial_on:
        beyond.append((config.adversarial.start == "image", "adversarial.start=image"))
    for there, what in beyond:
        if there:
            raise UserError(f"the benchmark has no bare counterpart of {what}; switch it off in the case")
