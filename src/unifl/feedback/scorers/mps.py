"""MPS: what of the prompt bears on a condition is read into the picture before the two are compared.

    m_i = max_j <t_i, c_j>,   a_i = 1[m_i / max_k m_k > 0.3]
    s = exp(logit scale) cos(cross(v, t | a)_cls, t_eos)

with the tokens t of the prompt, c of the condition and v of the picture, all projected by CLIP-H (Zhang et al.,
Learning Multi-dimensional Human Preference for Text-to-Image Generation, CVPR 2024; sizes, names and the threshold as
in github.com/Kwai-Kolors/MPS, where both evaluation scripts have 0.3 and the model's own forward has 0.01).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.scorers.cross_tokens import CrossTokens
from unifl.feedback.scorers.files import load_exact
from unifl.feedback.scorers.looking import Looking
from unifl.feedback.scorers.prompts import require_prompts

THRESHOLD = 0.3
TOKENS = 77
_AESTHETICS = "light, color, clarity, tone, style, ambiance, artistry"
_DETAIL = "shape, face, hair, hands, limbs, structure, instance, texture"
_SEMANTICS = "quantity, attributes, position, number, location"
CONDITIONS: Mapping[str, str] = {
    "overall": f"{_AESTHETICS}, {_DETAIL}, {_SEMANTICS}, word, things.",
    "aesthetics": _AESTHETICS,
    "detail": _DETAIL,
    "semantics": _SEMANTICS,
}
"""Words that the authors give for each side of a preference."""
_IDLE = re.compile(r"(.+\.)?(position_ids|inv_freq|pos_emb)")
"""Buffers that are computed from sizes."""
_LAYER = re.compile(r"layers\.(\d+)\.([01])\.fn\.(.+)")


class Mps(nn.Module):
    """The published model as a network on (images, prompts).

    Args:
        clip: `CLIPModel` of transformers with random weights, of the sizes that the weights were trained with.
        state: Of the authors' model: `model.*` is CLIP in the layout of transformers, `cross_model.*` the rest.
        tokenizer: Of CLIP.
        looking: How it is shown pictures.
        condition: A key of `CONDITIONS`.
        weights: Name for messages.
        base: Where the sizes of CLIP come from, for messages.

    Raises:
        UserError: Weights that are missing, surplus, or of other shapes.
    """

    def __init__(
        self,
        clip: Any,
        state: Mapping[str, Tensor],
        tokenizer: Any,
        looking: Looking,
        *,
        condition: str,
        weights: str,
        base: str,
    ) -> None:
        super().__init__()
        own, cross = _parted(state, weights)
        self.clip = clip
        load_exact(self.clip, own, weights=weights, base=base)
        self.cross = CrossTokens.of(cross, weights=weights)
        load_exact(self.cross, cross, weights=weights)
        self.tokenizer, self.looking = tokenizer, looking
        self.condition = CONDITIONS[condition]

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """One score per picture; the softmax over two of one prompt is the probability of a preference."""
        require_prompts(prompts, len(images))
        tokens, sentence, asked = self._read(prompts)
        seen = self.clip.vision_model(pixel_values=self.looking(images)).last_hidden_state
        seen = self.clip.visual_projection(seen)
        met = self.cross(seen, tokens, asked)[:, 0]
        return self.clip.logit_scale.exp() * F.cosine_similarity(met, sentence, dim=-1)

    @torch.no_grad()
    def _read(
        self, prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"], Bool[Tensor, "b n"]]:
        """Tokens and sentences of prompts, and which tokens bear on the condition."""
        different = list(dict.fromkeys(prompts))
        found = self.tokenizer(
            [*different, self.condition],
            padding="max_length",
            max_length=TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        read = self.clip.text_model(input_ids=found.input_ids.to(self.clip.logit_scale.device))
        tokens = self.clip.text_projection(read.last_hidden_state)
        sentences = self.clip.text_projection(read.pooler_output)
        rows = torch.tensor([different.index(prompt) for prompt in prompts], device=tokens.device)
        nearness = (tokens[:-1] @ tokens[-1].T).amax(-1)
        # the authors divide by the largest of a batch and ask one prompt at a time
        asked = nearness / nearness.amax(-1, keepdim=True) > THRESHOLD
        return tokens[rows], sentences[rows], asked[rows]


def _parted(state: Mapping[str, Tensor], weights: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of CLIP and of what crosses its tokens, by our names."""
    clip: dict[str, Tensor] = {}
    cross: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("mps.")  # a mirror's
        if _IDLE.fullmatch(name):
            continue
        layer = _LAYER.fullmatch(name.removeprefix("cross_model."))
        if name.startswith("model."):
            clip[name.removeprefix("model.")] = tensor
        elif name.startswith("cross_model.") and layer is not None:
            cross[f"layers.{layer[1]}.{'own' if layer[2] == '1' else 'cross'}.{layer[3]}"] = tensor
        else:
            raise UserError(f"{weights} holds {full}, which MPS does not have; give the published checkpoint")
    return clip, cross
