"""Tiny pipelines with random weights: every supported family, built in a fraction of a second, without a network.

They have the structure of the real models (tokenizers, text encoders, autoencoder, UNet, scheduler of the family)
with a few thousand parameters, so that a test of a method or of a plug-in runs the same code as a real model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Family = Literal["sd15", "sd21", "sdxl"]

FAMILIES: tuple[Family, ...] = ("sd15", "sd21", "sdxl")

_WIDTH = 32  # of the text encoders
_PROMPT_LENGTH = 77
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
_WORDS = (
    "a",
    "photo",
    "of",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "small",
    "large",
    "cat",
    "dog",
    "and",
)


def tiny_pipeline(family: Family, *, seed: int = 0) -> DiffusionPipeline:
    """A pipeline of a family with random weights.

    Pictures have 32 x 32 pixels and latents 4 x 8 x 8. The global random state is left as it was.

    Args:
        family: "sd15" predicts epsilon; "sd21" predicts v; "sdxl" has two text encoders, a pooled embedding and
            time ids.
        seed: Decides the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline: DiffusionPipeline = _BUILDERS[family]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_folder(family: Family, path: str | Path, *, seed: int = 0) -> Path:
    """Saves `tiny_pipeline(family, seed=seed)` as a diffusers folder and returns that folder."""
    tiny_pipeline(family, seed=seed).save_pretrained(str(path), safe_serialization=True)
    return Path(path)


def _sd15() -> StableDiffusionPipeline:
    scheduler = PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    unet = _unet(cross_attention_dim=_WIDTH, attention_head_dim=2)
    return _stable_diffusion(unet, scheduler, _text_config("quick_gelu"))


def _sd21() -> StableDiffusionPipeline:
    scheduler = DDIMScheduler(
        **_NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    unet = _unet(cross_attention_dim=_WIDTH, attention_head_dim=(2, 4), use_linear_projection=True)
    return _stable_diffusion(unet, scheduler, _text_config("gelu"))


def _sdxl() -> StableDiffusionXLPipeline:
    unet = _unet(
        cross_attention_dim=2 * _WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(0.13025),
        text_encoder=CLIPTextModel(_text_config("quick_gelu")).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config("gelu")).eval(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(pad_token="!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_NOISE, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


_BUILDERS: dict[Family, Callable[[], Any]] = {"sd15": _sd15, "sd21": _sd21, "sdxl": _sdxl}


def _stable_diffusion(
    unet: UNet2DConditionModel, scheduler: Any, text_config: CLIPTextConfig
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_autoencoder(0.18215),
        text_encoder=CLIPTextModel(text_config).eval(),
        tokenizer=_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def _autoencoder(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=scaling_factor,
    ).eval()


def _text_config(activation: str) -> CLIPTextConfig:
    vocabulary = _vocabulary()[0]
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        projection_dim=_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_PROMPT_LENGTH,
        hidden_act=activation,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )


def _tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=_PROMPT_LENGTH
    )


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Printable ASCII, alone and at a word's end, and a few whole words, as byte-pair tokens and merges."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = characters + [character + "</w>" for character in characters]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair, merged = (parts[0], parts[1]), parts[0] + parts[1]
            if merged not in tokens:
                tokens.append(merged)
                merges.append(pair)
            parts = [merged, *parts[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges
