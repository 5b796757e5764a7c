"""The shape of a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unifl.errors import UserError
from unifl.feedback.latent_proxy import LatentProxyConfig

BackboneKind = Literal["small", "clip", "siglip", "blip", "latent"]


@dataclass(kw_only=True)
class RewardModelConfig:
    """What reads pictures and prompts, and what judges them."""

    backbone: BackboneKind = "small"
    """small: a convolutional network that looks for words, made from nothing, for small worlds and a laptop. clip,
    siglip, blip: models of transformers. latent: two towers on latents, which need no decoder."""
    base: str | None = None
    """Folder or hub name of a clip, siglip or blip, with tokenizer and image processor."""
    head: Literal["mlp", "cosine"] = "mlp"
    """mlp: a small network on features. cosine: exp(scale) times the cosine of picture and prompt, as PickScore; it
    starts from what the two towers know."""
    hidden: int = 128
    """Width inside the mlp."""
    dropout: float = 0.1
    """On features, in [0, 1); the contrastive loss lives on it."""
    train_blocks: int = 0
    """Last blocks of each tower of a `base` that train with what follows them; 0 trains the head alone, -1 everything.
    The small and the latent backbone always train."""
    timed: bool = False
    """For latents: a time input, so that noisy latents can be judged."""
    latents: LatentProxyConfig | None = None
    """Shape of the towers on latents; null takes one that suits the model whose latents they are."""

    def __post_init__(self) -> None:
        if (self.base is not None) != (self.backbone in ("clip", "siglip", "blip")):
            raise UserError(
                f"the backbone {self.backbone} "
                + (
                    "starts from nothing; leave out base"
                    if self.base
                    else "needs `base`: a folder or a hub name"
                )
            )
        if self.head == "cosine" and self.backbone not in ("clip", "siglip", "latent"):
            raise UserError(
                f"the head cosine needs a tower each for pictures and prompts, and {self.backbone} has none; choose mlp"
            )
        if self.timed and self.backbone != "latent":
            raise UserError("timed is for noisy latents; choose the backbone latent, or leave it out")
        if self.latents is not None and self.backbone != "latent":
            raise UserError(f"latents is for the backbone latent, not {self.backbone}; leave it out")
        if self.latents is not None and self.latents.text == "clip":
            raise UserError("the latent backbone reads prompts by hashed words; set latents.text to hashed")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.hidden < 1 or self.train_blocks < -1:
            raise UserError("hidden must be at least 1, and train_blocks at least -1")
