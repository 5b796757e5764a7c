"""Three judges of different architecture: they read pictures and share nothing but what they are asked.

The *annotator* labels pictures (simulated people), the *validation* judge chooses settings and checkpoints,
the *gold* judge gives final figures.  Gold lives in `unifl.world.gold`, behind its guards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unifl.world.reading import CELL_CHANNELS, WHOLE_CHANNELS, Reading, read, score

JudgeName = Literal["annotator", "validation", "gold"]
FEATURE_DIM = 48
_THUMBNAIL = 8


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with group norm, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h)))
        return x + h


class _ConvNeXt(nn.Module):
    """Depthwise 7 x 7, then a pointwise network (2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.pointwise = nn.Sequential(
            nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(self.norm(self.depthwise(x)))


class _Attention(nn.Module):
    """A pre-norm transformer block on the grid's cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        h = self.norms[0](tokens)
        tokens = tokens + self.attention(h, h, h, need_weights=False)[0]
        tokens = tokens + self.network(self.norms[1](tokens))
        return tokens.transpose(1, 2).reshape(x.shape)


def _residual_trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1), _Residual(24),
        nn.Conv2d(24, 64, 3, stride=2, padding=1), _Residual(64), _Residual(64),
    )  # fmt: skip


def _convnext_trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.GroupNorm(1, 32), _ConvNeXt(32),
        nn.Conv2d(32, 64, 2, stride=2), nn.GroupNorm(1, 64), _ConvNeXt(64), _ConvNeXt(64),
    )  # fmt: skip


def _attention_trunk() -> nn.Sequential:
    stem = [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3, padding=1), nn.GELU()]
    return nn.Sequential(*stem, nn.Conv2d(32, 64, 3, stride=2, padding=1), _Residual(64), _Attention(64))


_TRUNKS = {"annotator": _residual_trunk, "validation": _convnext_trunk, "gold": _attention_trunk}


class JudgeNetwork(nn.Module):
    """A trunk at a quarter of the resolution, a context branch at a sixteenth, and two heads."""

    def __init__(self, name: JudgeName) -> None:
        super().__init__()
        width = 64
        block = {"annotator": _Residual, "validation": _ConvNeXt, "gold": _Attention}[name]
        self.trunk = _TRUNKS[name]()
        self.context = nn.Sequential(
            nn.Conv2d(width, 96, 3, stride=2, padding=1),
            block(96),
            nn.Conv2d(96, 96, 3, stride=2, padding=1),
            block(96),
        )
        self.merge = nn.Conv2d(width + 96, width, 1)
        self.mix = block(width) if name != "gold" else _Residual(width)
        self.cells = nn.Conv2d(width, CELL_CHANNELS, 1)
        pooled = 2 * (96 + 2 * width) + width + 3 * _THUMBNAIL**2
        self.summary = nn.Sequential(
            nn.Linear(pooled, 160), nn.SiLU(), nn.Linear(160, FEATURE_DIM), nn.SiLU()
        )
        self.whole = nn.Linear(FEATURE_DIM, WHOLE_CHANNELS)

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c g g"], Float[Tensor, "b d"]]:
        """Fields of every cell and of the whole; `unifl.world.reading` names them."""
        cells, summary = self._encode(images)
        return cells, self.whole(summary)

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        local = self.trunk(images * 2 - 1)
        context = self.context(local)
        wide = F.interpolate(context, size=local.shape[-2:], mode="bilinear", align_corners=False)
        merged = self.mix(self.merge(torch.cat([local, wide], 1)))
        # Light is a gradient over the whole picture and sharpness lives in the spread of features: neither
        # survives a plain mean, so spreads and a thumbnail of the picture join it.
        pooled = [
            p for x in (local, context, merged) for p in (x.mean((2, 3)), (x.var((2, 3)) + 1e-4).sqrt())
        ]
        thumbnail = F.adaptive_avg_pool2d(images * 2 - 1, _THUMBNAIL).flatten(1)
        return self.cells(merged), self.summary(torch.cat([*pooled, merged.amax((2, 3)), thumbnail], 1))

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The summary that style, background and qualities are read from."""
        return self._encode(images)[1]


class WorldJudge:
    """A judge as the evaluation expects it: pictures and prompts in, named scores out; never a gradient."""

    def __init__(self, network: JudgeNetwork, name: JudgeName) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name

    @torch.no_grad()
    def read(self, images: Float[Tensor, "b 3 h w"], batch_size: int = 250) -> list[Reading]:
        """What is in each picture."""
        return [r for part in images.split(batch_size) for r in read(*self.network(part))]

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " b"]]:
        """Scores against the prompts (see `unifl.world.reading.score`)."""
        return score(self.read(images), prompts)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"], batch_size: int = 250) -> Float[Tensor, "b d"]:
        """Features for distances between sets of pictures."""
        return torch.cat([self.network.features(part) for part in images.split(batch_size)])


def save_judge(network: JudgeNetwork, path: Path) -> None:
    """Weights as fp16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, path)


def load_judge_file(name: JudgeName, path: Path) -> WorldJudge:
    """A judge from the file that `save_judge` wrote, without guards: for building the world and measuring it."""
    network = JudgeNetwork(name)
    network.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return WorldJudge(network, name)
