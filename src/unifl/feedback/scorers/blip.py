"""Weights of BLIP in the layout of its authors, renamed to that of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unifl.errors import UserError

_HEAD = 64  # numbers per attention head, in every BLIP that was published
_PLAIN = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_IN_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def vision_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `transformers.BlipVisionModel`.

    Args:
        state: Of the authors' `VisionTransformer`.

    Raises:
        UserError: A weight that it does not have.
    """
    return {_renamed(name): tensor for name, tensor in state.items()}


def vision_config(state: Mapping[str, Tensor]) -> Any:
    """Its config, read off the shapes.

    Args:
        state: As `vision_state` returns it.

    Raises:
        UserError: The weights that tell the sizes are missing.
    """
    from transformers import BlipVisionConfig

    patches, places, wide = (
        _of(state, key)
        for key in (
            "embeddings.patch_embedding.weight",
            "embeddings.position_embedding",
            "encoder.layers.0.mlp.fc1.weight",
        )
    )
    width, patch = patches.shape[0], patches.shape[-1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=wide.shape[0],
        num_hidden_layers=_depth(state, "encoder.layers."),
        num_attention_heads=width // _HEAD,
        image_size=round((places.shape[1] - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # the authors'; transformers has 1e-5
    )


def text_config(state: Mapping[str, Tensor], *, vision_width: int) -> Any:
    """The config of `transformers.BlipTextModel`, whose names are those of the authors.

    Args:
        state: Of the authors' `BertModel` with cross attention.
        vision_width: Numbers per patch that it attends to.

    Raises:
        UserError: The weights that tell the sizes are missing.
    """
    from transformers import BlipTextConfig

    words, places, wide = (
        _of(state, key)
        for key in (
            "embeddings.word_embeddings.weight",
            "embeddings.position_embeddings.weight",
            "encoder.layer.0.intermediate.dense.weight",
        )
    )
    return BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=vision_width,
        intermediate_size=wide.shape[0],
        num_hidden_layers=_depth(state, "encoder.layer."),
        num_attention_heads=words.shape[1] // _HEAD,
        max_position_embeddings=places.shape[0],
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _renamed(name: str) -> str:
    if name in _PLAIN:
        return _PLAIN[name]
    block = _BLOCK.fullmatch(name)
    if block is None or block[2] not in _IN_BLOCK:
        raise UserError(
            f"the weight {name} belongs to no vision tower of BLIP; give the published checkpoint"
        )
    return f"encoder.layers.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"


def _of(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise UserError(
            f"there is no weight {key}, which tells how large the model is; give the published checkpoint"
        )
    return state[key]


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
