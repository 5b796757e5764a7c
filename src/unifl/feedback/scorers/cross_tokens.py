"""Layers in which tokens of a picture attend to some of a prompt's tokens, and then to each other.

Both attentions have many queries and one key and value per token, and run beside a gated feed-forward layer instead of
before it, as in PaLM (Chowdhery et al., arXiv 2204.02311, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unifl.errors import UserError


class SwiGlu(nn.Module):
    """x silu(gate), each from one half of the input."""

    def forward(self, x: Float[Tensor, "*b two_d"]) -> Float[Tensor, "*b d"]:
        """Half as many numbers."""
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class CrossLayer(nn.Module):
    """Attention of the picture to the prompt; names of weights as published.

    Args:
        width: Numbers per token.
        heads: Of the queries.
        per_head: Numbers per head.
        hidden: Of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, per_head: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * per_head, bias=False)
        self.to_kv = nn.Linear(width, 2 * per_head, bias=False)
        self.to_out = nn.Linear(heads * per_head, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * hidden, bias=False), SwiGlu(), nn.Linear(hidden, width, bias=False)
        )

    def forward(
        self,
        picture: Float[Tensor, "b n d"],
        prompt: Float[Tensor, "b m d"],
        asked: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b n d"]:
        """The picture's tokens, changed by those of the prompt that are asked."""
        x = self.norm(picture)
        query = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (part.unsqueeze(1) for part in self.to_kv(prompt).chunk(2, dim=-1))
        met = F.scaled_dot_product_attention(
            query,
            key.expand(-1, self.heads, -1, -1),
            value.expand(-1, self.heads, -1, -1),
            attn_mask=asked[:, None, None, :],
        )
        return picture + self.to_out(met.transpose(1, 2).flatten(2)) + self.ff(x)


class OwnLayer(nn.Module):
    """Attention of the picture's tokens to each other, with rotary positions; names of weights as published."""

    def __init__(self, width: int, heads: int, per_head: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.parts = (heads * per_head, per_head, per_head, 2 * hidden)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * per_head, width, bias=False)
        self.ff_out = nn.Sequential(SwiGlu(), nn.Linear(hidden, width, bias=False))

    def forward(self, picture: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The picture's tokens, changed by each other."""
        query, key, value, wide = self.fused_attn_ff_proj(self.norm(picture)).split(self.parts, dim=-1)
        query = _rotated(query.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        key, value = _rotated(key.unsqueeze(1)), value.unsqueeze(1)
        met = F.scaled_dot_product_attention(
            query, key.expand(-1, self.heads, -1, -1), value.expand(-1, self.heads, -1, -1)
        )
        return picture + self.attn_out(met.transpose(1, 2).flatten(2)) + self.ff_out(wide)


class CrossTokens(nn.Module):
    """Pairs of both layers.

    Args:
        depth: Pairs.
        width: Numbers per token.
        heads: Of the queries.
        per_head: Numbers per head.
        hidden: Of the feed-forward layers.
    """

    def __init__(self, depth: int, width: int, heads: int, per_head: int, hidden: int) -> None:
        super().__init__()
        sizes = (width, heads, per_head, hidden)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"cross": CrossLayer(*sizes), "own": OwnLayer(*sizes)}) for _ in range(depth)
        )

    @classmethod
    def of(cls, state: Mapping[str, Tensor], *, weights: str) -> CrossTokens:
        """With random weights, of the sizes that a state has.

        Raises:
            UserError: The weights that tell the sizes are missing.
        """
        try:
            queries, pair, wide = (
                state[f"layers.0.cross.{name}.weight"] for name in ("to_q", "to_kv", "ff.0")
            )
        except KeyError as error:
            raise UserError(
                f"{weights} lacks {error}, which tells how large the model is; give the published checkpoint"
            ) from error
        per_head = pair.shape[0] // 2
        depth = len({name.split(".")[1] for name in state})
        return cls(depth, queries.shape[1], queries.shape[0] // per_head, per_head, hidden=wide.shape[0] // 2)

    def forward(
        self,
        picture: Float[Tensor, "b n d"],
        prompt: Float[Tensor, "b m d"],
        asked: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b n d"]:
        """The picture's tokens after all layers."""
        for layer in self.layers:
            picture = layer["own"](layer["cross"](picture, prompt, asked))  # type: ignore[index]
        return picture


def _rotated(x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
    """Rotary positions (Su et al., arXiv 2104.09864): pairs of numbers half the width apart turn with the place."""
    half = x.shape[-1] // 2
    turns = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * turns
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
