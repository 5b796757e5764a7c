"""The shapes of the packaged pipeline: a `StableDiffusionPipeline` small enough to train on a laptop."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unifl.world.scenes import BACKGROUNDS, COLORS, COUNT_WORDS, PLURALS, RELATIONS, SHAPES, SIZES, STYLES

LATENT_CHANNELS = 12
TEXT_WIDTH = 96
MAX_TOKENS = 28


def words() -> list[str]:
    """Every word that a caption can hold."""
    fixed = ["a", "and", "in", "row", "column", "style", "background", ",", *COUNT_WORDS.values()]
    named = [*SHAPES, *PLURALS.values(), *COLORS, *SIZES, *STYLES, *BACKGROUNDS, *" ".join(RELATIONS).split()]
    return sorted({*fixed, *named})


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges spell the world's words, one token each."""
    letters = sorted(
        {c for w in words() for c in w if re.fullmatch(r"[a-z,]", c)} | set("abcdefghijklmnopqrstuvwxyz")
    )
    pieces = [*letters, *(f"{c}</w>" for c in letters)]
    merges: list[str] = []
    for word in words():
        parts = _bpe([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(parts) > 1:  # later merges rank lower, so they never break an earlier word
            merges.append(f"{parts[0]} {parts[1]}")
            pieces.append(parts[0] + parts[1])
            parts = _bpe(parts, merges)
    vocabulary = {p: i for i, p in enumerate([*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(vocabulary))
        merges_file.write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def _bpe(parts: list[str], merges: list[str]) -> list[str]:
    """Apply byte-pair merges in the order of their rank."""
    rank = {merge: i for i, merge in enumerate(merges)}
    while True:
        pairs = [(rank.get(f"{a} {b}", len(merges)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        best = min(pairs, default=(len(merges), 0))
        if best[0] == len(merges):
            return parts
        i = best[1]
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]


def autoencoder() -> AutoencoderKL:
    """64 px to 8 x 8 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
    )


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of CLIP's text model."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )


def denoiser() -> UNet2DConditionModel:
    """2.8 M parameters on 8 x 8 latents, cross-attention at both resolutions."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        transformer_layers_per_block=1,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="epsilon",
        timestep_spacing="trailing",
    )


def assemble(
    vae: AutoencoderKL, text: CLIPTextModel, tokens: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as a pipeline in evaluation mode."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokens,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, text, unet):
        part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
