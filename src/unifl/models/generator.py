"""A diffusers pipeline in the language of this project: x_t = alpha(t) x0 + sigma(t) eps, t in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from unifl.errors import UserError
from unifl.models import prompts as text
from unifl.models.autoencoder import Autoencoder, DecodePrecision, dtype_of
from unifl.models.checkpointing import enable_checkpointing, role_aware_checkpoint
from unifl.models.conditioning import Conditioning, Prediction
from unifl.models.denoiser import check_resolution, denoiser_name, denoiser_of, evaluate, takes_time_ids
from unifl.models.guidance_embedding import guidance_width
from unifl.models.roles import START_ROLES, STUDENT, Roles
from unifl.models.schedule import read_schedule
from unifl.models.user import with_user
from unifl.process import per_sample, to_eps, to_x0
from unifl.randomness import Key

MixedPrecision = Literal["no", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Generator:
    """Encodes prompts, denoises, encodes and decodes pictures, each with the weights of an explicit role.

    Timesteps, prediction kinds and scaling factors of diffusers are translated here and nowhere else.

    Attributes:
        pipeline: The StableDiffusion, StableDiffusionXL or StableDiffusion3 pipeline; its networks are the student's.
        roles: The weight sets.
        denoiser: Name of the denoiser among the components: "unet" or "transformer".
        schedule: Which times training and sampling visit.
        process: alpha and sigma, from the scheduler of the pipeline.
        kind: What the denoiser predicts.
        num_train_timesteps: T.
        spacing: Which timesteps the scheduler of the pipeline visits.
        steps_offset: Its offset for leading spacing.
        latent_shape: (channels, height, width) of one latent.
        image_size: (height, width) of a picture in pixels.
        mixed_precision: Precision of network evaluations; losses and predictions are float32.
        source: What the model was loaded from (a folder, a hub name), for model cards; may be empty.
    """

    def __init__(
        self,
        pipeline: Any,
        roles: Roles,
        *,
        resolution: int | None = None,
        mixed_precision: MixedPrecision = "no",
        source: str = "",
        adds_guidance: bool = False,
    ) -> None:
        """Wraps a pipeline; `unifl.models.load_generator` does so for a folder, a hub name or a file.

        Args:
            pipeline: See the class; put into evaluation mode (training here means gradients, not dropout). An
                autoencoder that overflows in float16 is converted to float32.
            roles: Made from the networks of this pipeline.
            resolution: Height and width of pictures in pixels; None takes the size the model was trained at.
            mixed_precision: "no" evaluates in the dtype of the weights.
            source: See the class.
            adds_guidance: Whether the embedding of the guidance scale was added for training: what the user started
                from takes no notice of it.
        """
        self.pipeline = pipeline
        self.roles = roles
        self.source = source
        self.mixed_precision: MixedPrecision = mixed_precision
        self.denoiser = denoiser_name(pipeline)
        self.schedule = read_schedule(pipeline)
        self.process, self.kind = self.schedule.process, self.schedule.kind
        self.spacing, self.steps_offset = self.schedule.spacing, self.schedule.steps_offset
        self.num_train_timesteps = self.schedule.num_train_timesteps
        self.is_xl = takes_time_ids(denoiser_of(self.pipeline))
        self.latent_shape = _latent_shape(pipeline, resolution)
        _, height, width = self.latent_shape
        self.image_size = (height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor)
        self._adds_guidance = adds_guidance
        self._cache = text.PromptCache()
        for module in self.modules().values():
            module.eval()
        pipeline.vae.requires_grad_(False)
        self._autoencoder = Autoencoder(
            pipeline.vae, autocast=self._autocast, is_float16=mixed_precision == "fp16"
        )
        if self._autoencoder.overflows and pipeline.vae.dtype == torch.float16:
            pipeline.vae.to(torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the denoiser lives; the CPU for one of shapes without weights, which lives nowhere."""
        # the property of diffusers walks through every module, several times a step
        device: torch.device = next(denoiser_of(self.pipeline).parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    def modules(self) -> dict[str, nn.Module]:
        """The networks of the pipeline by name: denoiser, text encoders, vae."""
        names = [self.denoiser, *text.text_encoder_names(self.pipeline), "vae"]
        return {name: getattr(self.pipeline, name) for name in names}

    # --- prompts -----------------------------------------------------------------------------------------

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder trains; if not, every prompt is encoded once."""
        return any(self.roles.trains(name) for name in text.text_encoder_names(self.pipeline))

    def encode_prompts(
        self, prompts: Sequence[str], *, role: str = STUDENT, grad: bool = False
    ) -> Conditioning:
        """Encodes prompts, equal to `pipeline.encode_prompt`.

        Args:
            prompts: b texts.
            role: Whose weights encode.
            grad: Whether gradients reach the text encoder; without effect where it does not train.

        Returns:
            Conditioning of batch size b; for SDXL with time ids of an uncropped picture of `image_size`.
        """
        if not self.trains_text or role in START_ROLES:
            return self._with_time_ids(self._cached(list(prompts), role))
        with torch.set_grad_enabled(grad), self._autocast():
            encoded = text.encode(self.pipeline, self.roles, role, prompts, is_xl=self.is_xl)
        return self._with_time_ids(encoded.to(dtype=torch.float32))

    def encode_negative(
        self, prompt: str | None, batch_size: int, *, role: str = STUDENT, grad: bool = False
    ) -> Conditioning:
        """The unconditional half of guidance, the same for all samples.

        Args:
            prompt: A negative prompt. None means what the pipeline itself takes when it is given none: the empty
                prompt, or zeros for an SDXL model with `force_zeros_for_empty_prompt`.
            batch_size: b.
            role: Whose weights encode.
            grad: See `encode_prompts`.
        """
        negative = self.encode_prompts([prompt or ""], role=role, grad=grad)
        if prompt is None and self.is_xl and self.pipeline.config.force_zeros_for_empty_prompt:
            assert negative.pooled is not None
            negative = Conditioning(
                torch.zeros_like(negative.embeds), torch.zeros_like(negative.pooled), negative.time_ids
            )
        return negative.repeat(batch_size)

    def time_ids(self, batch_size: int) -> Float[Tensor, "b 6"]:
        """SDXL's size conditioning (Podell et al., arXiv 2307.01952, section 2.2), of uncropped pictures."""
        row = [*self.image_size, 0, 0, *self.image_size]
        return torch.tensor([row] * batch_size, dtype=torch.float32, device=self.device)

    def _cached(self, prompts: list[str], role: str) -> Conditioning:
        parts = []
        for prompt in prompts:
            encoded = self._cache.get(prompt)
            if encoded is None:
                with torch.no_grad(), self._autocast() if self.trains_text else nullcontext():
                    encoded = text.encode(self.pipeline, self.roles, role, [prompt], is_xl=self.is_xl)
                self._cache.put(prompt, encoded)
            parts.append(encoded)
        return Conditioning.cat(parts).to(dtype=torch.float32)

    def _with_time_ids(self, cond: Conditioning) -> Conditioning:
        return Conditioning(cond.embeds, cond.pooled, self.time_ids(len(cond)) if self.is_xl else None)

    # --- denoising ---------------------------------------------------------------------------------------

    def denoise(
        self,
        role: str,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        cond: Conditioning,
        *,
        guidance: int | float | Float[Tensor, " b"] = 1.0,
        negative: Conditioning | None = None,
    ) -> Prediction:
        """One evaluation of the denoiser; gradients flow where torch records them.

        Args:
            role: Whose weights predict.
            x_t: Noisy latents.
            t: One time per sample in (0, 1].
            cond: Encoded prompts of batch size b, and whom the pictures are for.
            guidance: w of u + w (c - u), one for all or one per sample. 1 evaluates the b conditional samples only; any
                other value evaluates both halves in one batch of 2 b. A role that embeds guidance is told w and
                evaluates the b conditional samples whatever it is.
            negative: u's prompts, batch size b; None means `encode_negative(None, b)`. It is for an unknown user unless
                it names one, so that guidance follows the user as it follows the prompt.

        Raises:
            UserError: `cond` has users, and the model has no adapter for them or one of another width.
        """
        if self.embeds_guidance(role):
            told = torch.as_tensor(guidance, dtype=torch.float32, device=x_t.device).expand(len(x_t))
            raw = self._evaluate(role, x_t, t, cond, guidance=told)
        elif not isinstance(guidance, Tensor) and guidance == 1.0:
            raw = self._evaluate(role, x_t, t, cond)
        else:
            if negative is None:
                negative = self.encode_negative(None, len(x_t), role=role)
            both = Conditioning.cat([negative, cond])
            without, with_prompt = self._evaluate(role, x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            scale = per_sample(guidance, without) if isinstance(guidance, Tensor) else guidance
            raw = without + scale * (with_prompt - without)
        x_t, t = x_t.float(), t.float()
        alpha, sigma = self.process.weights(t)
        x0 = to_x0(raw, x_t, alpha, sigma, self.kind)
        return Prediction(x_t, t, raw, x0, to_eps(raw, x_t, alpha, sigma, self.kind))

    def embeds_guidance(self, role: str = STUDENT) -> bool:
        """Whether the network of a role is told the guidance scale, and so needs no unconditional half."""
        return guidance_width(denoiser_of(self.pipeline)) > 0 and not (
            self._adds_guidance and role in START_ROLES
        )

    def _evaluate(
        self, role: str, x_t: Tensor, t: Tensor, cond: Conditioning, *, guidance: Tensor | None = None
    ) -> Tensor:
        timestep = self.schedule.timestep(t.float())
        with self.roles.use(role), self._autocast():
            network = self.roles.module(self.denoiser, role)
            cond = cond.to(self.device, dtype_of(network))
            added = with_user(self.roles, cond, None)
            return evaluate(network, x_t, timestep, cond, guidance=guidance, added=added).float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.mixed_precision == "no":
            return nullcontext()
        # The cache of autocast keeps a weight that was cast without gradient (in a rollout) for a later evaluation
        # that needs one, whose gradient then never arrives. Within one evaluation it saves nothing.
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.mixed_precision], cache_enabled=False)

    # --- pictures ----------------------------------------------------------------------------------------

    def check_decode(self, dtype: DecodePrecision) -> None:
        """Refuse a precision of `decode` that the weights of the autoencoder do not have.

        Raises:
            UserError: float32 asked of weights in half precision.
        """
        self._autoencoder.check_decode(dtype)

    def encode(
        self, images: Float[Tensor, "b 3 height width"], *, key: Key | None = None, grad: bool = False
    ) -> Float[Tensor, "b c h w"]:
        """Pictures to scaled latents.

        Args:
            images: In [0, 1].
            key: Draws from the posterior; None takes its mode.
            grad: Whether gradients reach the pictures.
        """
        mean, std = self._autoencoder.posterior(images, self.device, grad=grad)
        if key is not None:
            mean = mean + std * key.normal("posterior", mean.shape[1:], device=mean.device)
        return self._autoencoder.scaled(mean)

    def posterior(
        self, images: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Mean and standard deviation of the scaled latents that `encode` draws, without gradient, in float32.

        `encode(images, key=key)` is mean + std * noise, up to the rounding of the scaling.

        Args:
            images: In [0, 1].
        """
        mean, std = self._autoencoder.posterior(images, self.device)
        return self._autoencoder.scaled(mean), std * self._autoencoder.scale

    def decode(
        self,
        latents: Float[Tensor, "b c h w"],
        *,
        grad: bool = False,
        checkpoint: bool = False,
        slicing: bool = False,
        dtype: DecodePrecision = "auto",
    ) -> Float[Tensor, "b 3 height width"]:
        """Scaled latents to pictures in [0, 1], float32.

        Values outside [0, 1] are clamped, and the gradient passes as if they were not: a saturated pixel would
        otherwise never be told to come back.

        Args:
            latents: As `encode` gives them.
            grad: Whether gradients reach the latents.
            checkpoint: Recompute the decoder during backward in place of storing it; no effect without `grad`.
            slicing: One picture at a time; with `checkpoint`, backward too holds one picture at a time.
            dtype: Precision of the decoder. "auto" is the mixed precision, and float32 in place of float16 where
                the autoencoder overflows; bfloat16 has the range of float32 and does not.

        Raises:
            UserError: See `check_decode`.
        """
        self.check_decode(dtype)
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return self._autoencoder.decode(
                latents, dtype, self.device, checkpoint=checkpoint, slicing=slicing
            )

    # --- weights -----------------------------------------------------------------------------------------

    def trainable_parameters(self, role: str = STUDENT) -> dict[str, Parameter]:
        """The parameters of a role by name, for an optimiser.

        Raises:
            UserError: A network of the pipeline has a parameter that asks for a gradient and is not one of these.
        """
        self.roles.check_trainable(self.modules())
        return self.roles.parameters(role)

    def trainable_state(self) -> dict[str, Tensor]:
        """The student's trained weights as {name: tensor}, sharing memory with the networks."""
        return self.roles.state(STUDENT)

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Copies weights that `trainable_state` gave back into the student."""
        self.roles.load_state(STUDENT, state)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks of every trained network during backward, under the role they ran with."""
        function = role_aware_checkpoint(self.roles)
        for name in self.roles.components:
            if self.roles.trains(name):
                for role in self.roles.names:
                    enable_checkpointing(self.roles.module(name, role), function)


def _latent_shape(pipeline: Any, resolution: int | None) -> tuple[int, int, int]:
    denoiser = denoiser_of(pipeline)
    config, factor = denoiser.config, pipeline.vae_scale_factor
    channels = config.in_channels
    if channels != pipeline.vae.config.latent_channels:
        raise UserError(
            f"the denoiser takes {channels} channels and the autoencoder gives {pipeline.vae.config.latent_channels}: "
            "an inpainting or image-conditioned model; use a text-to-image model"
        )
    if resolution is None:
        size = config.sample_size
        return (channels, size, size) if isinstance(size, int) else (channels, *size)
    check_resolution(denoiser, resolution, factor)
    return (channels, resolution // factor, resolution // factor)
