"""Scores of CLIP and its relatives: how near the embedding of a picture is to that of its prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unifl.feedback.scorers.looking import Looking
from unifl.feedback.scorers.prompts import require_prompts, tidied

Formula = Callable[[Tensor, nn.Module], Tensor]
"""Cosines and the model give scores."""
_KEPT = 4096  # embeddings of prompts


def clip_score(cosine: Tensor, model: nn.Module) -> Tensor:
    """2.5 max(cos, 0) (Hessel et al., arXiv 2104.08718)."""
    return 2.5 * cosine.clamp(min=0)


def logits(cosine: Tensor, model: nn.Module) -> Tensor:
    """exp(logit scale) cos: the score whose softmax over two pictures is PickScore's probability."""
    scale: Any = model.logit_scale
    return scale.exp() * cosine


def hundredfold(cosine: Tensor, model: nn.Module) -> Tensor:
    """100 cos, as HPS is reported."""
    return 100 * cosine


def probability(cosine: Tensor, model: nn.Module) -> Tensor:
    """sigmoid(exp(logit scale) cos + bias), SigLIP's probability that picture and text belong together."""
    scale, bias = model.logit_scale, model.logit_bias
    return torch.sigmoid(scale.exp() * cosine + bias)  # type: ignore[operator]


class ClipScorer(nn.Module):
    """A model with two towers as a network on (images, prompts).

    Args:
        model: `CLIPModel` or `SiglipModel` of transformers.
        tokenizer: Of its text tower.
        looking: How it is shown pictures.
        formula: What comes of the cosine.
        prefix: Put before every prompt.
        length: Tokens; longer prompts are cut off.
        tidies: Whether the original's tokenizer tidies prompts up before it reads them.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        looking: Looking,
        *,
        formula: Formula,
        prefix: str = "",
        length: int = 77,
        tidies: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.looking = model, tokenizer, looking
        self.formula, self.prefix, self.length, self.tidies = formula, prefix, length, tidies
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """One score per picture."""
        require_prompts(prompts, len(images))
        cosine = (self.embed_images(images) * self.embed_texts(prompts)).sum(-1)
        return self.formula(cosine, self.model)

    def embed_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings of unit length."""
        found = self.model.get_image_features(pixel_values=self.looking(images))  # type: ignore[operator]
        return F.normalize(_pooled(found), dim=-1)

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embeddings of unit length, without gradient; those of the last prompts are kept."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if new:
            self._texts |= zip(new, self.encode_texts(new), strict=True)
        place = next(self.model.parameters()).device
        found = torch.stack([self._texts[prompt].to(place) for prompt in prompts])
        for prompt in prompts:
            self._texts.move_to_end(prompt)
        while len(self._texts) > _KEPT:
            self._texts.popitem(last=False)
        return found

    def encode_texts(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embeddings of unit length, anew and with a gradient to weights that train."""
        read = tidied if self.tidies else str
        tokens = self.tokenizer(
            [read(self.prefix + prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        place = next(self.model.parameters()).device
        found = self.model.get_text_features(input_ids=tokens.input_ids.to(place))  # type: ignore[operator]
        return F.normalize(_pooled(found), dim=-1)


def _pooled(found: Any) -> Tensor:
    """Transformers 5 answers with an object, version 4 with the tensor."""
    return found if isinstance(found, Tensor) else found.pooler_output
