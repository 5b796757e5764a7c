"""Extractors of features by name, from published weights.

open_features("dinov2")                                                   # by its hub name, or from the hub's cache
open_features("inception", weights="pt_inception-2015-12-05-6726825d.pth")
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError, nearest
from unifl.feedback.features.inception import inception_from
from unifl.feedback.features.transformer import clip_network, dinov2_network
from unifl.feedback.scorers.files import read_state


@dataclass(frozen=True, kw_only=True)
class FeatureCard:
    """An extractor in words.

    Attributes:
        title: Name as in the literature.
        paper: Where distances on it were proposed.
        weights: Hub name, or name of the published file.
        licence: Of those weights, as far as their page says.
        sees: How it is shown a picture.
        used_for: What numbers on it are called.
    """

    title: str
    paper: str
    weights: str
    licence: str
    sees: str
    used_for: str


class PictureFeatures:
    """Pictures to one row of numbers each; frozen, float32, without gradient.

    Attributes:
        name: What files and messages call it.
    """

    def __init__(self, network: nn.Module, *, name: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features of pictures in [0, 1]."""
        return self.network(images.float())

    def to(self, device: torch.device | str) -> PictureFeatures:
        """Move the network, and return this object."""
        self.network.to(device)
        return self

    def sha256(self) -> str:
        """Hash of the weights: files of features of other weights are not taken for these."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{key} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Entry:
    card: FeatureCard
    build: Callable[[str, str | None], nn.Module]
    """From weights and revision."""


def open_features(kind: str, *, weights: str | None = None, revision: str | None = None) -> PictureFeatures:
    """An extractor by its name.

    Args:
        kind: See `FEATURES`.
        weights: Where its weights are: a folder or a hub name (dinov2, clip), or a file (inception; of a .pth, nothing
            but tensors is read). None is where they were published.
        revision: Of the hub repository.

    Raises:
        UserError: No such extractor, nothing to read, or weights that are missing or surplus.
    """
    if kind not in _ENTRIES:
        guess = nearest(kind, _ENTRIES)
        hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(_ENTRIES)}"
        raise UserError(f"there are no features {kind!r}; {hint}")
    entry = _ENTRIES[kind]
    return PictureFeatures(entry.build(weights or entry.card.weights, revision), name=kind)


def _inception(weights: str, revision: str | None) -> nn.Module:
    return inception_from(read_state(weights, revision), weights)


_ENTRIES: dict[str, _Entry] = {
    "inception": _Entry(
        FeatureCard(
            title="Inception-v3 of 2015-12-05",
            paper="Heusel et al., arXiv 1706.08500; Binkowski et al., arXiv 1801.01401",
            weights="pt_inception-2015-12-05-6726825d.pth",
            licence="Apache-2.0 (TensorFlow's model, as converted by github.com/mseitzer/pytorch-fid)",
            sees="the whole picture squashed to 299 px, bilinear without antialiasing, as pytorch-fid scales tensors",
            used_for="FID, KID: 2048 numbers",
        ),
        _inception,
    ),
    "dinov2": _Entry(
        FeatureCard(
            title="DINOv2 ViT-L/14",
            paper="Stein et al., arXiv 2306.04675",
            weights="facebook/dinov2-large",
            licence="Apache-2.0",
            sees="the whole picture squashed to 224 px, bicubic, as dgm-eval does",
            used_for="FD-DINOv2: the class token behind the last norm, 1024 numbers",
        ),
        dinov2_network,
    ),
    "clip": _Entry(
        FeatureCard(
            title="CLIP ViT-L/14 at 336 px",
            paper="Jayasumana et al., arXiv 2401.09603",
            weights="openai/clip-vit-large-patch14-336",
            licence="MIT (code and weights of openai/CLIP)",
            sees="the middle square at 336 px, bicubic, as CMMD's code does",
            used_for="CMMD: the embedding, of unit length, 768 numbers",
        ),
        clip_network,
    ),
}
FEATURES: Mapping[str, FeatureCard] = MappingProxyType({kind: entry.card for kind, entry in _ENTRIES.items()})
"""All extractors, with what to know of each."""
