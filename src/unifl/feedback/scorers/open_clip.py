"""Weights of CLIP in the layout of open_clip (and OpenAI's own code), renamed to that of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from unifl.errors import UserError

_PLAIN = {
    "logit_scale": "logit_scale",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
"""Matrices that are multiplied from the right there."""
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_JOINED = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_BUFFERS = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # of OpenAI's files: no weights


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `transformers.CLIPModel`.

    Args:
        state: Of open_clip's `CLIP`; names may begin with `module.`.

    Raises:
        UserError: A weight that no CLIP has.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.removeprefix("module.")
        if name not in _BUFFERS:
            found |= _renamed(name, tensor)
    return found


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in _PLAIN:
        return {_PLAIN[name]: tensor}
    if name in _TURNED:
        return {_TURNED[name]: tensor.T.contiguous()}
    norm, _, end = name.rpartition(".")
    if norm in _NORMS:
        return {f"{_NORMS[norm]}.{end}": tensor}
    joined = _JOINED.fullmatch(name)
    if joined is not None:
        place = _place(joined[1], joined[2])
        parts = zip(("q", "k", "v"), tensor.chunk(3), strict=True)
        return {f"{place}.self_attn.{part}_proj.{joined[3]}": one.contiguous() for part, one in parts}
    block = _BLOCK.fullmatch(name)
    if block is None or block[3] not in _IN_BLOCK:
        raise UserError(f"the weight {name} belongs to no CLIP; give a checkpoint in the layout of open_clip")
    return {f"{_place(block[1], block[2])}.{_IN_BLOCK[block[3]]}.{block[4]}": tensor}


def _place(visual: str | None, number: str) -> str:
    return f"{'vision_model' if visual else 'text_model'}.encoder.layers.{number}"
