"""A reward model: a backbone, dropout on its features, and a head that gives one number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.base import Space
from unifl.feedback.latent_proxy import LatentProxyConfig, make_proxy
from unifl.feedback.reward_models.backbones import (
    TIME_CHANNELS,
    BlipBackbone,
    LatentBackbone,
    SmallBackbone,
    TwoTowerBackbone,
    unlock_last,
)
from unifl.feedback.reward_models.config import RewardModelConfig
from unifl.feedback.scorers.files import load_two_towers, tokenizer_and_looking

Backbone = SmallBackbone | TwoTowerBackbone | BlipBackbone | LatentBackbone
KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel", "blip": "BlipForImageTextRetrieval"}
"""Classes of transformers."""
_TOKENS = {"clip": 77, "siglip": 64}


class MlpHead(nn.Module):
    """Two layers; where features are two embeddings, their product joins them, so that a match can be seen."""

    def __init__(self, width: int, hidden: int, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        inside = width + width // 2 if halves else width
        self.layers = nn.Sequential(
            nn.LayerNorm(inside), nn.Linear(inside, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """One number each."""
        if self.halves:
            picture, words = features.chunk(2, 1)
            features = torch.cat([features, picture * words], 1)
        return self.layers(features)[:, 0]


class CosineHead(nn.Module):
    """exp(scale) times the cosine of the two halves; exp(scale) is at most 100, as CLIP's."""

    def __init__(self, log_scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """One number each."""
        picture, words = features.chunk(2, 1)
        return self.log_scale.clamp(max=math.log(100)).exp() * (picture * words).sum(1)


class RewardModel(nn.Module):
    """`model(images, prompts) -> (b,)`; on timed latents `model(latents, prompts, t)`.

    Args:
        config: Its shape.
        backbone: Gives features.
        head: Judges them.
    """

    def __init__(self, config: RewardModelConfig, backbone: Backbone, head: MlpHead | CosineHead) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.head = backbone, head
        self.drop = nn.Dropout(config.dropout)

    @property
    def space(self) -> Space:
        """What it reads."""
        return "latent" if self.config.backbone == "latent" else "pixel"

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        prompts: Sequence[str],
        t: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b"]:
        """Rewards, unbounded, higher is better; differences are log-odds."""
        return self.judge(self.drop(self.features(images, prompts, t)))

    def features(
        self,
        images: Float[Tensor, "b c h w"],
        prompts: Sequence[str],
        t: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """What the head judges, before dropout.

        Raises:
            UserError: A time for a model that has none.
        """
        if t is None:
            return self.backbone(images, prompts)
        if not self.config.timed:
            raise UserError("this reward model knows no time; train one with timed, or show it clean latents")
        return self.backbone(images, prompts, t)

    def judge(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The reward of features."""
        return self.head(features)


class TrainedReward:
    """A frozen reward model as a differentiable Feedback.

    Args:
        model: The network.
        name: What losses and metrics are called after.
        found: What its folder says of its training.

    Attributes:
        network: The network.
    """

    differentiable: bool = True
    needs: frozenset[str] = frozenset({"prompt"})
    range: tuple[float, float] | None = None

    def __init__(self, model: RewardModel, *, name: str, found: Mapping[str, Any] | None = None) -> None:
        self.network = model.eval().requires_grad_(False)
        self.name, self.found = name, dict(found or {})

    @property
    def space(self) -> Space:
        """What it reads."""
        return self.network.space

    def __call__(
        self,
        images: Float[Tensor, "b c h w"],
        prompts: Sequence[str],
        t: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b"]:
        """Rewards; of noisy latents with their times, where the model is timed."""
        return self.network(images, prompts, t)


def make_reward_model(config: RewardModelConfig, *, seed: int = 0) -> RewardModel:
    """A reward model before its fit, on the CPU; what trains asks for a gradient.

    Args:
        config: Its shape.
        seed: Of the random weights. The global random state is left as it was.

    Raises:
        UserError: A base that cannot be read, or towers on latents without a shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _backbone(config, seed)
        return RewardModel(config, backbone, make_head(config, backbone))


def around_base(config: RewardModelConfig, place: str) -> TwoTowerBackbone | BlipBackbone:
    """The backbone around a model of transformers.

    Args:
        config: Which kind, and what of it trains.
        place: Folder or hub name.

    Raises:
        UserError: See `load_two_towers`.
    """
    model = load_two_towers(place, KINDS[config.backbone], None).eval()
    tokenizer, looking = tokenizer_and_looking(place, None)
    unlock_last(model, config.train_blocks)
    if config.backbone == "blip":
        return BlipBackbone(model, tokenizer, looking)
    return TwoTowerBackbone(model, tokenizer, looking, length=_TOKENS[config.backbone])


def _backbone(config: RewardModelConfig, seed: int) -> Backbone:
    if config.backbone == "small":
        return SmallBackbone()
    if config.backbone == "latent":
        if config.latents is None:
            raise UserError("a reward model on latents needs `latents`, the shape of its towers; give one")
        proxy = make_proxy(with_time(config.latents, config.timed), seed=seed)
        proxy.logit_scale.requires_grad_(False)  # the head has a scale of its own
        return LatentBackbone(proxy, timed=config.timed)
    assert config.base is not None
    return around_base(config, config.base)


def with_time(shape: LatentProxyConfig, timed: bool) -> LatentProxyConfig:
    """The shape of towers that also read a time."""
    return dataclasses.replace(shape, channels=shape.channels + TIME_CHANNELS) if timed else shape


def make_head(config: RewardModelConfig, backbone: Backbone) -> MlpHead | CosineHead:
    """The head that a config asks for, on a backbone."""
    if config.head == "mlp":
        return MlpHead(backbone.width, config.hidden, halves=backbone.halves)
    model: Any = backbone.towers.model if isinstance(backbone, TwoTowerBackbone) else None
    return CosineHead(float(model.logit_scale.detach()) if model is not None else math.log(10))
