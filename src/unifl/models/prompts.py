"""Prompts to embeddings, as the pipelines of diffusers do it, with the weights of a role."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unifl.models.conditioning import Conditioning
from unifl.models.denoiser import TRANSFORMER, denoiser_name, denoiser_of
from unifl.models.roles import Roles

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
T5 = "text_encoder_3"
T5_LENGTH = 256
"""Tokens that the T5 of Stable Diffusion 3 reads, as in its pipeline."""


def text_encoder_names(pipeline: Any) -> list[str]:
    """Names of the text encoders that a pipeline has."""
    return [name for name in TEXT_ENCODERS if getattr(pipeline, name, None) is not None]


def trainable_text_encoders(pipeline: Any) -> list[str]:
    """Names of those that can be trained: the CLIP encoders, as no reader of LoRA files looks for one of a T5."""
    return [name for name in text_encoder_names(pipeline) if name != T5]


def encode(pipeline: Any, roles: Roles, role: str, prompts: Sequence[str], *, is_xl: bool) -> Conditioning:
    """Encodes prompts; gradients flow where torch records them.

    Args:
        pipeline: A StableDiffusion, StableDiffusionXL or StableDiffusion3 pipeline.
        roles: The roles of its generator.
        role: Whose weights encode.
        prompts: b texts; what exceeds the tokenizer's length is cut off.
        is_xl: The penultimate layer of two encoders side by side and a pooled embedding, in place of the last
            layer of one.

    Returns:
        Embeddings (b, l, d) and, for XL and Stable Diffusion 3, pooled embeddings (b, p); no time ids.
    """
    joint = denoiser_name(pipeline) == TRANSFORMER
    embeds: list[Tensor] = []
    pooled: list[Tensor] = []
    with roles.use(role):
        for name in trainable_text_encoders(pipeline):
            found, whole = _clip(pipeline, roles, role, name, prompts, penultimate=is_xl or joint)
            embeds.append(found)
            if whole is not None:
                pooled.append(whole)  # only encoders with a projection have one
        beside = torch.cat(embeds, dim=-1)
        if joint:
            return Conditioning(
                _followed_by_t5(pipeline, roles, role, prompts, beside), torch.cat(pooled, dim=-1)
            )
    return Conditioning(beside, pooled[-1] if pooled else None)


def _clip(
    pipeline: Any, roles: Roles, role: str, name: str, prompts: Sequence[str], *, penultimate: bool
) -> tuple[Tensor, Tensor | None]:
    """Embeddings of a CLIP encoder, and its pooled embedding where the penultimate layer is read."""
    tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
    encoder: Any = roles.module(name, role)
    texts = list(prompts)
    if hasattr(pipeline, "maybe_convert_prompt"):  # textual inversion
        texts = pipeline.maybe_convert_prompt(texts, tokenizer)
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    output = encoder(
        tokens.input_ids.to(encoder.device),
        attention_mask=None if mask is None else mask.to(encoder.device),
        output_hidden_states=penultimate,
    )
    if not penultimate:
        return output[0], None
    return output.hidden_states[-2], output[0] if output[0].ndim == 2 else None


def _followed_by_t5(pipeline: Any, roles: Roles, role: str, prompts: Sequence[str], clip: Tensor) -> Tensor:
    """CLIP's tokens, widened with zeros, and after them those of the T5, or zeros where there is none."""
    width = denoiser_of(pipeline).config.joint_attention_dim
    if getattr(pipeline, T5) is None:
        t5 = clip.new_zeros(len(clip), T5_LENGTH, width)
    else:
        encoder: Any = roles.module(T5, role)
        tokens = pipeline.tokenizer_3(
            list(prompts), padding="max_length", max_length=T5_LENGTH, truncation=True, return_tensors="pt"
        )
        t5 = encoder(tokens.input_ids.to(encoder.device))[0]
    return torch.cat([functional.pad(clip, (0, width - clip.shape[-1])), t5.to(clip)], dim=1)


class PromptCache:
    """Encoded prompts by text, the least recently used dropped first.

    Every prompt is encoded in a batch of its own. A batch of another size may differ in the last bits, and a run
    that resumes with an empty cache would then not end as the uninterrupted one does.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        """An empty cache.

        Args:
            max_bytes: Memory that the embeddings may take.
        """
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, Conditioning] = OrderedDict()

    def get(self, text: str) -> Conditioning | None:
        """The stored encoding, batch size 1."""
        entry = self._entries.get(text)
        if entry is not None:
            self._entries.move_to_end(text)
        return entry

    def put(self, text: str, encoded: Conditioning) -> None:
        """Stores an encoding of batch size 1 for a text that is not there yet."""
        self._entries[text] = encoded
        self._bytes += _num_bytes(encoded)
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            self._bytes -= _num_bytes(self._entries.popitem(last=False)[1])


def _num_bytes(encoded: Conditioning) -> int:
    return sum(t.numel() * t.element_size() for t in (encoded.embeds, encoded.pooled) if t is not None)
