"""ImageReward: BLIP reads the prompt with the picture before it, and a head gives a number.

    r = (MLP(h_cls) - 0.1672) / 1.0333,   h = BERT(35 tokens | ViT-L/16(picture))

(Xu et al., arXiv 2304.05977; names of weights, the mean and the standard deviation as in github.com/THUDM/ImageReward).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.scorers import blip
from unifl.feedback.scorers.files import load_exact
from unifl.feedback.scorers.linear_head import linear_head
from unifl.feedback.scorers.looking import Looking
from unifl.feedback.scorers.prompts import require_prompts

MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
_IDLE = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""Of BLIP's training: the score does not ask them, so that files with and without them are alike."""
_PARTS = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")


class ImageReward(nn.Module):
    """The published model as a network on (images, prompts).

    Args:
        state: Of the published file.
        tokenizer: Of `bert-base-uncased`.
        weights: Name for messages.

    Raises:
        UserError: Weights that are missing, surplus, or of other shapes.
    """

    def __init__(self, state: Mapping[str, Tensor], tokenizer: Any, *, weights: str) -> None:
        super().__init__()
        from transformers import BlipTextModel, BlipVisionModel

        vision, text, head = _parted(state, weights)
        vision = blip.vision_state(vision)
        seen = blip.vision_config(vision)
        read = blip.text_config(text, vision_width=seen.hidden_size)
        self.vision = BlipVisionModel(seen)
        self.text = BlipTextModel(read, add_pooling_layer=False)
        load_exact(self.vision, vision, weights=weights)
        load_exact(self.text, text, weights=weights)
        self.head = linear_head(head, what="ImageReward's head")
        if len(tokenizer) > read.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} words and {weights} has {read.vocab_size}; give bert-base-uncased "
                "as `base`"
            )
        self.tokenizer = tokenizer
        self.looking = Looking(size=seen.image_size, half="even")

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """One score per picture; about N(0, 1) over the pictures that it was trained on."""
        require_prompts(prompts, len(images))
        seen = self.vision(pixel_values=self.looking(images)).last_hidden_state
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(seen.device)
        read = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        return (self.head(read.last_hidden_state[:, 0])[:, 0] - MEAN) / STD


def _parted(state: Mapping[str, Tensor], weights: str) -> list[dict[str, Tensor]]:
    """The weights of vision, text and head, under their names there."""
    found: list[dict[str, Tensor]] = [{}, {}, {}]
    for name, tensor in state.items():
        if name.startswith(_IDLE):
            continue
        part = next((number for number, prefix in enumerate(_PARTS) if name.startswith(prefix)), None)
        if part is None:
            raise UserError(
                f"{weights} holds {name}, which ImageReward does not have; give ImageReward.pt as it was published"
            )
        found[part][name.removeprefix(_PARTS[part])] = tensor
    return found
