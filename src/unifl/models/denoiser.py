"""The network that denoises: what it is called in a pipeline, and how it is called.

A UNet (Stable Diffusion 1, 2, XL) is `pipeline.unet`; the transformer of Stable Diffusion 3 is `pipeline.transformer`.
Whatever differs between the two beside their prompts and their schedules is told apart here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.models.autoencoder import dtype_of
from unifl.models.conditioning import Conditioning
from unifl.models.guidance_embedding import guidance_embedding, guidance_width

UNET = "unet"
TRANSFORMER = "transformer"


def denoiser_name(pipeline: Any) -> str:
    """Name of the denoiser among the components of a pipeline."""
    return TRANSFORMER if getattr(pipeline, TRANSFORMER, None) is not None else UNET


def denoiser_of(pipeline: Any) -> Any:
    """The denoiser of a pipeline."""
    return getattr(pipeline, denoiser_name(pipeline))


def takes_time_ids(denoiser: Any) -> bool:
    """Whether it is told sizes and crops, as SDXL is."""
    return bool(denoiser.config.get("addition_embed_type") == "text_time")


def evaluate(
    denoiser: Any,
    x_t: Float[Tensor, "b c h w"],
    timestep: Float[Tensor, " b"],
    cond: Conditioning,
    *,
    guidance: Float[Tensor, " b"] | None = None,
    added: Mapping[str, Any] | None = None,
) -> Float[Tensor, "b c h w"]:
    """One call, in the dtype of the weights.

    Args:
        denoiser: Of any kind.
        x_t: Noisy latents.
        timestep: In the counting of the network, see `unifl.models.schedule`.
        cond: Encoded prompts, where the network is and in the dtype of its weights.
        guidance: The scale that it is told, if it embeds one.
        added: Of diffusers' `added_cond_kwargs` for a UNet, beside what follows from the prompts.
    """
    dtype = dtype_of(denoiser)
    if isinstance(denoiser, SD3Transformer2DModel):
        output: Tensor = denoiser(
            x_t.to(dtype),
            timestep=timestep,
            encoder_hidden_states=cond.embeds,
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]
        return output
    told = None
    if guidance is not None:
        told = guidance_embedding(guidance, guidance_width(denoiser)).to(dtype)
    if takes_time_ids(denoiser):
        added = {**(added or {}), "text_embeds": cond.pooled, "time_ids": cond.time_ids}
    output = denoiser(
        x_t.to(dtype),
        timestep,
        encoder_hidden_states=cond.embeds,
        timestep_cond=told,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return output


def check_resolution(denoiser: Any, resolution: int, pixels_per_latent: int) -> None:
    """Refuses a size of pictures that the network cannot draw.

    Args:
        denoiser: Of any kind.
        resolution: In pixels.
        pixels_per_latent: The factor of the autoencoder.

    Raises:
        UserError: With the multiple that it needs, or the largest size.
    """
    config = denoiser.config
    if isinstance(denoiser, SD3Transformer2DModel):
        multiple = pixels_per_latent * config.patch_size
        largest = multiple * config.pos_embed_max_size
        if resolution > largest:
            raise UserError(
                f"resolution is {resolution}; the positions of this model end at {largest} pixels"
            )
    else:
        # the UNet halves latents once per level
        multiple = pixels_per_latent * 2 ** (len(config.block_out_channels) - 1)
    if resolution <= 0 or resolution % multiple:
        raise UserError(f"resolution is {resolution}; this model needs a multiple of {multiple} pixels")


def unread_parts(denoiser: Any) -> list[str]:
    """Paths within a denoiser whose output nothing reads, so that their weights would never train.

    The last block of the transformer drops its text tokens, so what asks questions in their name is idle.
    """
    if not isinstance(denoiser, SD3Transformer2DModel):
        return []
    last = f"transformer_blocks.{len(denoiser.transformer_blocks) - 1}.attn"
    return [f"{last}.add_q_proj", f"{last}.norm_added_q"]
