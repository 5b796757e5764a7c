"""The halves of a latent proxy: towers that read latents, and towers that read prompts.

Every tower ends in a projection to the common embedding, keeps its blocks from first to last in `blocks`, and names in
`ends` what follows the last one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.networks import MAX_WORDS, WORD_BUCKETS, word_buckets


class _Attention(nn.Module):
    """A block of a transformer with the norms in front; no dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_look, self.norm_think = nn.LayerNorm(width), nn.LayerNorm(width)
        self.look, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """One round; `keep` says which tokens may be looked at."""
        b, n, d = x.shape
        parts = self.look(self.norm_look(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if keep is None else keep[:, None, None, :]
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
        x = x + self.gather(seen.transpose(1, 2).reshape(b, n, d))
        return x + self.think(self.norm_think(x))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with group norm, added to the input, which may be halved and widened on the way."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm_first, self.norm_second = nn.GroupNorm(8, width_in), nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width_in, width, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        same = stride == 1 and width_in == width
        self.skip = nn.Identity() if same else nn.Conv2d(width_in, width, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm_first(x)))
        return self.skip(x) + self.second(F.silu(self.norm_second(h)))


class LatentViT(nn.Module):
    """Patches of a latent as tokens (Dosovitskiy et al., arXiv 2010.11929), averaged at the end.

    Args:
        channels: Of the latents.
        size: Side of the latents whose places are learned; for others the places are interpolated.
        width: Of a token.
        depth: Blocks.
        heads: Of each block.
        patch: Side of a patch; sides of latents are multiples of it.
        embedding: Width of what comes out.
    """

    def __init__(
        self, *, channels: int, size: int, width: int, depth: int, heads: int, patch: int, embedding: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, width, size // patch, size // patch))
        self.blocks = nn.ModuleList(_Attention(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embedding, bias=False)

    @property
    def ends(self) -> list[nn.Module]:
        """What follows the last block."""
        return [self.norm, self.projection]

    def forward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """Embeddings, not normalised."""
        cells = self.patches(latents)
        places: Tensor = self.places
        if places.shape[-2:] != cells.shape[-2:]:
            places = F.interpolate(places, size=cells.shape[-2:], mode="bicubic", align_corners=False)
        tokens = (cells + places).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.projection(self.norm(tokens).mean(1))


class LatentResNet(nn.Module):
    """Residual blocks, two per stage; each stage after the first halves the latent and doubles the width.

    Args:
        channels: Of the latents, which may have any size.
        width: Of the first stage, a multiple of 8.
        depth: Blocks; 8 is the layout of ResNet-18.
        embedding: Width of what comes out.
    """

    def __init__(self, *, channels: int, width: int, depth: int, embedding: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        widths = [width * 2 ** (block // 2) for block in range(depth)]
        before = [width, *widths[:-1]]
        self.blocks = nn.ModuleList(
            _Residual(wide_in, wide, 1 if wide_in == wide else 2)
            for wide_in, wide in zip(before, widths, strict=True)
        )
        self.norm = nn.GroupNorm(8, widths[-1])
        self.projection = nn.Linear(widths[-1], embedding, bias=False)

    @property
    def ends(self) -> list[nn.Module]:
        """What follows the last block."""
        return [self.norm, self.projection]

    def forward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """Embeddings, not normalised."""
        x = self.stem(latents)
        for block in self.blocks:
            x = block(x)
        return self.projection(F.silu(self.norm(x)).mean((2, 3)))


class HashedText(nn.Module):
    """A small transformer on hashed words: no vocabulary and nothing to download, for small worlds and tests."""

    def __init__(self, *, width: int, depth: int, heads: int, embedding: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORD_BUCKETS, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        self.blocks = nn.ModuleList(_Attention(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embedding, bias=False)

    @property
    def ends(self) -> list[nn.Module]:
        """What follows the last block."""
        return [self.norm, self.projection]

    def forward(self, prompts: Sequence[str]) -> Float[Tensor, "b e"]:
        """Embeddings, not normalised; words beyond the 32nd are not read."""
        ids = word_buckets(prompts).to(self.places.device)
        keep = ids != 0
        keep[:, 0] = True  # an empty prompt keeps one word to look at
        tokens = self.words(ids) + self.places
        for block in self.blocks:
            tokens = block(tokens, keep)
        weights = keep[..., None].to(tokens.dtype)
        return self.projection((self.norm(tokens) * weights).sum(1) / weights.sum(1))


class ClipText(nn.Module):
    """A CLIP text model of transformers, copied in float32, and a projection.

    Args:
        model: `CLIPTextModel` or `CLIPTextModelWithProjection`, as pipelines of Stable Diffusion hold one.
        tokenizer: Of that model; texts beyond its length are cut off.
        embedding: Width of what comes out.

    Raises:
        UserError: Another kind of text model, or one that carries LoRA layers.
    """

    def __init__(self, model: Any, tokenizer: Any, *, embedding: int) -> None:
        super().__init__()
        inner = getattr(model, "text_model", model)
        if not hasattr(inner, "final_layer_norm") or not hasattr(inner, "encoder"):
            raise UserError(
                f"{type(model).__name__} is no CLIP text model; give the text encoder of a Stable Diffusion pipeline, "
                "or a folder with a CLIP"
            )
        if getattr(model, "peft_config", None):
            raise UserError(
                "the text encoder carries LoRA layers, which the proxy would copy; give the one of a freshly loaded "
                "pipeline"
            )
        self.model = copy.deepcopy(model).float().eval()
        self.tokenizer = tokenizer
        width = model.config.projection_dim if inner is not model else model.config.hidden_size
        self.projection = nn.Linear(width, embedding, bias=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers of the encoder."""
        return getattr(self.model, "text_model", self.model).encoder.layers

    @property
    def ends(self) -> list[nn.Module]:
        """What follows the last layer."""
        inner = getattr(self.model, "text_model", self.model)
        own = [self.model.text_projection] if inner is not self.model else []
        return [inner.final_layer_norm, *own, self.projection]

    def forward(self, prompts: Sequence[str]) -> Float[Tensor, "b e"]:
        """Embeddings, not normalised; what stands after the end of a text cannot be seen from there."""
        tokens = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        output = self.model(input_ids=tokens.input_ids.to(self.projection.weight.device))
        pooled = getattr(output, "text_embeds", None)
        return self.projection(output.pooler_output if pooled is None else pooled)
