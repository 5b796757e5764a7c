"""Tiny pipelines with random weights: every supported family, built in a fraction of a second, without a network.

They have the structure of the real models (tokenizers, text encoders, autoencoder, denoiser, scheduler of the family)
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
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

Family = Literal["sd15", "sd21", "sdxl", "sd3", "sd3_t5"]

FAMILIES: tuple[Family, ...] = ("sd15", "sd21", "sdxl")
"""Diffusion models with a UNet."""

FLOW_FAMILIES: tuple[Family, ...] = ("sd3", "sd3_t5")
"""Flow-matching transformers; each method says whether it can train them."""

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

    Pictures have 32 x 32 pixels and latents 4 x 8 x 8, or 16 x 8 x 8 for "sd3" and "sd3_t5". The global random state
    is left as it was.

    Args:
        family: "sd15" predicts epsilon; "sd21" predicts v; "sdxl" has two text encoders, a pooled embedding and
            time ids; "sd3" is a flow-matching transformer with two text encoders; "sd3_t5" has a T5 beside them, and
            the normalised queries and second attention of Stable Diffusion 3.5.
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


def _sd3(t5: bool = False) -> StableDiffusion3Pipeline:
    width = 3 * _WIDTH  # wider than both CLIP encoders side by side, which are padded up to it
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=width,
        caption_projection_dim=16,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,) if t5 else (),
        qk_norm="rms_norm" if t5 else None,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(
            1.5305, latent_channels=16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=CLIPTextModelWithProjection(_text_config("quick_gelu")).eval(),
        tokenizer=_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config("gelu")).eval(),
        tokenizer_2=_tokenizer(pad_token="!"),
        text_encoder_3=_t5(width) if t5 else None,
        tokenizer_3=_t5_tokenizer() if t5 else None,
    )


_BUILDERS: dict[Family, Callable[[], Any]] = {
    "sd15": _sd15,
    "sd21": _sd21,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "sd3_t5": lambda: _sd3(t5=True),
}


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


def _autoencoder(scaling_factor: float, **changes: Any) -> AutoencoderKL:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": scaling_factor,
    }
    return AutoencoderKL(**{**settings, **changes}).eval()


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


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=128,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config).eval()


def _t5_tokenizer() -> T5Tokenizer:
    """A unigram model whose pieces are the printable characters."""
    pieces = ["\u2581", *(chr(code) for code in range(33, 127))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), *((piece, -3.0) for piece in pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


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
