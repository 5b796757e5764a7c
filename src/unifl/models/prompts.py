"""Prompts to embeddings, as the pipelines of diffusers do it, with the weights of a role."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unifl.models.conditioning import Conditioning
from unifl.models.roles import Roles

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def text_encoder_names(pipeline: Any) -> list[str]:
    """Names of the text encoders that a pipeline has."""
    return [name for name in TEXT_ENCODERS if getattr(pipeline, name, None) is not None]


def encode(pipeline: Any, roles: Roles, role: str, prompts: Sequence[str], *, is_xl: bool) -> Conditioning:
    """Encodes prompts; gradients flow where torch records them.

    Args:
        pipeline: A StableDiffusion or StableDiffusionXL pipeline.
        roles: The roles of its generator.
        role: Whose weights encode.
        prompts: b texts; what exceeds the tokenizer's length is cut off.
        is_xl: The penultimate layer of two encoders side by side and a pooled embedding, in place of the last
            layer of one.

    Returns:
        Embeddings (b, l, d) and, for XL, pooled embeddings (b, p); no time ids.
    """
    embeds: list[Tensor] = []
    pooled: Tensor | None = None
    with roles.use(role):
        for name in text_encoder_names(pipeline):
            tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
            encoder = roles.module(name, role)
            texts = pipeline.maybe_convert_prompt(list(prompts), tokenizer)
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
                output_hidden_states=is_xl,
            )
            embeds.append(output.hidden_states[-2] if is_xl else output[0])
            if is_xl and output[0].ndim == 2:
                pooled = output[0]  # of the last encoder: the one with a projection
    return Conditioning(torch.cat(embeds, dim=-1), pooled)


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
