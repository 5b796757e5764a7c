"""What reads pictures (or latents) and prompts: one vector of features each.

Every backbone has `width`, the length of its features, and `halves`: whether these are a unit vector of the picture
beside one of the prompt, of which a cosine can be taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.feedback.latent_proxy import LatentProxy
from unifl.feedback.networks import RewardNetwork
from unifl.feedback.scorers.clip import ClipScorer, logits
from unifl.feedback.scorers.looking import Looking

TIME_CHANNELS = 8
"""Channels beside the latents that hold the time."""
_BLIP_TOKENS = 35  # ImageReward's, arXiv 2304.05977, and its published code
_BLOCK = re.compile(r"(.*)\.layers?\.(\d+)\.")
_BEFORE_BLOCKS = ("embeddings", "pre_layrnorm")


class SmallBackbone(nn.Module):
    """The network of the embedded world's rewards, without its head."""

    halves = False

    def __init__(self) -> None:
        super().__init__()
        self.network = RewardNetwork()
        first = self.network.judge[0]
        assert isinstance(first, nn.Linear)
        self.width = first.in_features
        del self.network.judge

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Words, what they see, and the picture's pooled features."""
        return self.network.read(self.network.trunk(images), prompts)


class TwoTowerBackbone(nn.Module):
    """CLIP or SigLIP: the embedding of the picture beside that of the prompt, each of length 1.

    Args:
        model: `CLIPModel` or `SiglipModel` of transformers.
        tokenizer: Of its text tower.
        looking: How it is shown pictures.
        length: Tokens of a prompt.
    """

    halves = True

    def __init__(self, model: Any, tokenizer: Any, looking: Looking, *, length: int) -> None:
        super().__init__()
        self.towers = ClipScorer(model, tokenizer, looking, formula=logits, length=length)
        text = model.config.text_config
        self.width = 2 * int(getattr(model.config, "projection_dim", None) or text.hidden_size)

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Both embeddings; prompts are encoded once each while their tower is frozen."""
        text_model: Any = self.towers.model.text_model
        trains = any(parameter.requires_grad for parameter in text_model.parameters())
        if trains:
            distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
            words = self.towers.encode_texts(list(distinct))[[distinct[prompt] for prompt in prompts]]
        else:
            words = self.towers.embed_texts(prompts)
        return torch.cat([self.towers.embed_images(images), words], 1)


class BlipBackbone(nn.Module):
    """BLIP: the prompt's first token after it has looked at the picture, as in ImageReward (arXiv 2304.05977).

    Args:
        model: `BlipForImageTextRetrieval` of transformers.
        tokenizer: Of its text encoder.
        looking: How it is shown pictures.
    """

    halves = False

    def __init__(self, model: Any, tokenizer: Any, looking: Looking) -> None:
        super().__init__()
        self.model, self.tokenizer, self.looking = model, tokenizer, looking
        self.width = int(model.config.text_config.hidden_size)

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Prompts beyond 35 tokens are cut off."""
        seen = self.model.vision_model(pixel_values=self.looking(images)).last_hidden_state
        words = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=_BLIP_TOKENS, return_tensors="pt"
        ).to(seen.device)
        read = self.model.text_encoder(
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        return read.last_hidden_state[:, 0]


class LatentBackbone(nn.Module):
    """Towers of a latent proxy; with `timed` the time stands in channels of its own beside the latents.

    Args:
        proxy: Its towers; with `timed` its config counts `TIME_CHANNELS` more than the latents have.
        timed: Whether there is a time.
    """

    halves = True

    def __init__(self, proxy: LatentProxy, *, timed: bool) -> None:
        super().__init__()
        self.proxy, self.timed = proxy, timed
        self.width = 2 * proxy.config.embedding

    def forward(
        self, latents: Float[Tensor, "b c h w"], prompts: Sequence[str], t: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Both embeddings; without t the latents count as clean."""
        shown = latents
        if self.timed:
            t = latents.new_zeros(len(latents)) if t is None else t
            waves = time_waves(t)[:, :, None, None].expand(-1, -1, *latents.shape[2:])
            shown = torch.cat([latents, self.proxy.config.scaling_factor * waves], 1)
        return torch.cat([self.proxy.embed_latents(shown), self.proxy.embed_prompts(prompts)], 1)


def time_waves(t: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
    """Sines and cosines of a time in [0, 1], of periods 2, 1, 1/2 and 1/4."""
    angle = math.pi * t[:, None] * 2.0 ** torch.arange(TIME_CHANNELS // 2, device=t.device)
    return torch.cat([angle.sin(), angle.cos()], 1)


def unlock_last(model: nn.Module, blocks: int) -> None:
    """Train the last blocks of every tower of a model of transformers with what follows them, and freeze the rest.

    Args:
        model: With `layers.<n>` or `layer.<n>` in the names of its towers' parameters.
        blocks: How many; 0 freezes everything, -1 trains everything but the scale and bias of logits.
    """
    number: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if found := _BLOCK.match(name):
            number[found[1]] = max(number.get(found[1], 0), int(found[2]) + 1)
    for name, parameter in model.named_parameters():
        found = _BLOCK.match(name)
        late = int(found[2]) >= number[found[1]] - blocks if found else not _before_blocks(name)
        wanted = blocks < 0 or (blocks > 0 and late)
        parameter.requires_grad_(wanted and not name.startswith("logit_"))


def _before_blocks(name: str) -> bool:
    return any(part in name for part in _BEFORE_BLOCKS)
