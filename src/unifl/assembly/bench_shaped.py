"""A model in the proportions of a published one, with random weights and narrower, for the benchmark of distillation.

What the cache of encoded pictures saves depends on how the encoders compare with the UNet. Those of the embedded world
are small; here every width of a family is divided by the same number, pictures are smaller and prompts shorter, which
leaves the relation of the networks to each other nearly as it is (`docs/performance.md` has both).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from unifl.assembly.bench_cases import ROWS, Parts
from unifl.data import Sample
from unifl.errors import UserError
from unifl.models.shapes import require_shapes, shaped_pipeline

NARROWER = 4
"""What every width is divided by: groups of normalisation and heads of the text encoder too."""

SIDE = 256
"""Of the pictures, in pixels."""

_PIXELS = 512**2
"""Beside which a prompt is as long as it is; beside fewer it is shorter."""

_SEED = 5


def shaped_parts(family: str, *, narrower: int = NARROWER, side: int = SIDE) -> Parts:
    """A narrow pipeline of a family on pictures of noise; there are no rewards and no critics.

    Args:
        family: "sd15" or "sd21".
        narrower: What widths are divided by; a divisor of the 32 groups of normalisation and of the heads.
        side: Of the pictures, in pixels, a multiple of 64.

    Raises:
        UserError: A family whose shapes are not known, or that has two text encoders, as the script has one.
    """
    require_shapes(family)
    shapes = shaped_pipeline(family)
    if hasattr(shapes, "text_encoder_2"):
        raise UserError(f"the benchmark has models with one text encoder; {family} has two, so name another")
    draws = torch.Generator().manual_seed(_SEED)
    pictures = [Sample(torch.rand(3, side, side, generator=draws), f"picture {row}") for row in range(ROWS)]
    return Parts(
        name=f"{family}, widths / {narrower}, {side} px",
        pipeline=lambda: narrow_pipeline(shapes, narrower=narrower, side=side),
        rewards={},
        critics={},
        discriminator=None,
        sources={"images": pictures},
    )


def narrow_pipeline(shapes: Any, *, narrower: int, side: int) -> Any:
    """A pipeline with random weights whose widths are those of `shapes` divided; see `shaped_parts`."""
    unet, vae = (_settings(network) for network in (shapes.unet, shapes.vae))
    text = shapes.text_encoder.config.to_dict()
    for config, widths in (
        (unet, ("cross_attention_dim", "norm_num_groups")),
        (vae, ("norm_num_groups",)),
        (text, ("hidden_size", "intermediate_size", "num_attention_heads", "projection_dim")),
    ):
        config |= {name: config[name] // narrower for name in widths}
    for config, now in ((unet, side // shapes.vae_scale_factor), (vae, side)):
        widths = tuple(width // narrower for width in config["block_out_channels"])
        config |= {"block_out_channels": widths, "sample_size": now}
    tokenizer = deepcopy(shapes.tokenizer)
    tokenizer.model_max_length = text["max_position_embeddings"] = max(
        2, tokenizer.model_max_length * side**2 // _PIXELS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        parts = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(type(shapes.text_encoder.config)(**text)),
        }
    pipeline = type(shapes)(
        **parts, tokenizer=tokenizer, scheduler=shapes.scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    for network in parts.values():
        network.eval()
    return pipeline


def _settings(network: Any) -> dict[str, Any]:
    """What a network of diffusers was made with."""
    return {name: value for name, value in network.config.items() if not name.startswith("_")}
