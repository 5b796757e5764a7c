"""Published models written out in plain functions, by the names of their published weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(query, key, value, heads, seen=None):
    """softmax(q k / sqrt d) v per head; `seen` (b, keys) tells which keys count."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    weights = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if seen is not None:
        weights = weights.masked_fill(~seen[:, None, None, :], float("-inf"))
    return (weights.softmax(-1) @ value).transpose(1, 2).flatten(2)


def image_reward(state, pixels, tokens, seen, *, depth, heads):
    """BLIP's two towers and the head of ImageReward, in evaluation."""
    see = {name.removeprefix("blip.visual_encoder."): value for name, value in state.items()}
    x = F.conv2d(pixels, see["patch_embed.proj.weight"], see["patch_embed.proj.bias"], stride=16)
    x = torch.cat([see["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + see["pos_embed"]
    for layer in range(depth):
        place = f"blocks.{layer}"
        y = norm(see, f"{place}.norm1", x, 1e-6)
        x = x + linear(
            see, f"{place}.attn.proj", attend(*linear(see, f"{place}.attn.qkv", y).chunk(3, -1), heads)
        )
        y = norm(see, f"{place}.norm2", x, 1e-6)
        x = x + linear(see, f"{place}.mlp.fc2", F.gelu(linear(see, f"{place}.mlp.fc1", y)))
    picture = norm(see, "norm", x, 1e-6)

    read = {name.removeprefix("blip.text_encoder."): value for name, value in state.items()}
    y = read["embeddings.word_embeddings.weight"][tokens]
    y = y + read["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = norm(read, "embeddings.LayerNorm", y, 1e-12)

    def block(name, y, keys, seen):
        own = f"{name}.self"
        met = attend(
            linear(read, f"{own}.query", y),
            linear(read, f"{own}.key", keys),
            linear(read, f"{own}.value", keys),
            heads,
            seen,
        )
        return norm(read, f"{name}.output.LayerNorm", y + linear(read, f"{name}.output.dense", met), 1e-12)

    for layer in range(depth):
        place = f"encoder.layer.{layer}"
        y = block(f"{place}.attention", y, y, seen)
        y = block(f"{place}.crossattention", y, picture, None)
        wide = F.gelu(linear(read, f"{place}.intermediate.dense", y))
        y = norm(read, f"{place}.output.LayerNorm", y + linear(read, f"{place}.output.dense", wide), 1e-12)
    y = y[:, 0]
    for number in (0, 2, 4, 6, 7):
        y = linear(state, f"mlp.layers.{number}", y)
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


def mps_cross(state, picture, prompt, hidden, *, depth, heads):
    """The layers of MPS behind CLIP; `hidden` (b, tokens) are those that do not count."""
    for layer in range(depth):
        own = f"cross_model.layers.{layer}.0.fn"
        x = norm(state, f"{own}.norm", picture, 1e-5)
        query = linear(state, f"{own}.to_q", x).unflatten(-1, (heads, -1))
        key, value = linear(state, f"{own}.to_kv", prompt).chunk(2, -1)
        weights = torch.einsum("bihd,bjd->bhij", query, key) / math.sqrt(key.shape[-1])
        weights = weights + torch.where(hidden, float("-inf"), 0.0)[:, None, None, :]
        met = torch.einsum("bhij,bjd->bihd", weights.softmax(-1), value).flatten(2)
        wide, gate = linear(state, f"{own}.ff.0", x).chunk(2, -1)
        picture = (
            picture + linear(state, f"{own}.to_out", met) + linear(state, f"{own}.ff.2", wide * F.silu(gate))
        )
        own = f"cross_model.layers.{layer}.1.fn"
        x = norm(state, f"{own}.norm", picture, 1e-5)
        d = key.shape[-1]
        query, key, value, wide = linear(state, f"{own}.fused_attn_ff_proj", x).split(
            [heads * d, d, d, 2 * (state[f"{own}.ff_out.1.weight"].shape[1])], -1
        )
        query, key = turned(query.unflatten(-1, (heads, -1))), turned(key.unsqueeze(2))[:, :, 0]
        weights = torch.einsum("bihd,bjd->bhij", query, key) / math.sqrt(d)
        met = torch.einsum("bhij,bjd->bihd", weights.softmax(-1), value).flatten(2)
        wide, gate = wide.chunk(2, -1)
        picture = (
            picture
            + linear(state, f"{own}.attn_out", met)
            + linear(state, f"{own}.ff_out.1", wide * F.silu(gate))
        )
    return picture


def turned(x):
    """Rotary positions as complex numbers: number k and number k + d/2 are one plane. x is (b, n, heads, d)."""
    half = x.shape[-1] // 2
    plane = torch.complex(x[..., :half].double(), x[..., half:].double())
    angle = torch.outer(torch.arange(x.shape[1]).double(), 10000.0 ** (-torch.arange(half).double() / half))
    plane = plane * torch.polar(torch.ones_like(angle), angle)[:, None, :]
    return torch.cat([plane.real, plane.imag], -1).to(x.dtype)
