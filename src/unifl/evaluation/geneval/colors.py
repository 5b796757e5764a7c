"""The colour of a detected object: by CLIP among ten names, or exactly where colours are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.data.suites.geneval import COLORS
from unifl.feedback.detectors import Detection
from unifl.feedback.scorers.clip import ClipScorer

_BLANK = 0.6  # grey (#999) in place of what is not the object
_PATTERNS = (
    "a photo of a {color} {kind}",
    "a photo of a {color}-colored {kind}",
    "a photo of a {color} object",
)


@runtime_checkable
class ColorReader(Protocol):
    """Reads colours of objects of one class on one picture.

    Attributes:
        names: The colours that it can tell.
    """

    names: frozenset[str]

    def __call__(self, image: Float[Tensor, "3 h w"], objects: Sequence[Detection], kind: str) -> list[str]:
        """One name per object."""
        ...


class ClipColors:
    """Zero-shot classification of what was cut out, the background grey where there is a mask.

    Args:
        network: CLIP; the published rules have ViT-L/14.
    """

    names: frozenset[str] = frozenset(COLORS)

    def __init__(self, network: ClipScorer) -> None:
        self.network = network.eval().requires_grad_(False)
        self._kinds: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "3 h w"], objects: Sequence[Detection], kind: str) -> list[str]:
        """One of the ten colours per object."""
        shown = torch.cat([self.network.embed_images(cut_out(image, one)[None]) for one in objects])
        places = (shown @ self._texts(kind).to(shown.device).T).argmax(-1).tolist()
        return [COLORS[place] for place in places]

    def _texts(self, kind: str) -> Float[Tensor, "c d"]:
        """Per colour the mean of its sentences, of unit length."""
        if kind not in self._kinds:
            texts = [pattern.format(color=color, kind=kind) for color in COLORS for pattern in _PATTERNS]
            found = self.network.embed_texts(texts).unflatten(0, (len(COLORS), len(_PATTERNS))).mean(1)
            self._kinds[kind] = F.normalize(found, dim=-1)
        return self._kinds[kind]


class PaletteColors:
    """The colour of a palette whose hue is nearest to that of the median pixel of an object, whatever light and shade.

    Exact on pictures that were painted with that palette. It must have no greys, which have no hue.

    Args:
        palette: Red, green and blue in [0, 1] by name.
    """

    def __init__(self, palette: Mapping[str, tuple[float, float, float]]) -> None:
        self.palette = dict(palette)
        self.names = frozenset(palette)

    def __call__(self, image: Float[Tensor, "3 h w"], objects: Sequence[Detection], kind: str) -> list[str]:
        """One name per object."""
        names, hues = list(self.palette), _hue(image.new_tensor(list(self.palette.values())))
        return [names[int((hues @ _hue(_median(image, one))).argmax())] for one in objects]


def _hue(colors: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Direction away from grey."""
    return F.normalize(colors - colors.mean(-1, keepdim=True), dim=-1)


def cut_out(image: Float[Tensor, "3 h w"], one: Detection) -> Float[Tensor, "3 a b"]:
    """The box of an object, at least a pixel each way, grey outside its mask."""
    left, top, right, bottom = _pixels(one, image)
    if one.mask is not None:
        image = torch.where(one.mask.to(image.device), image, _BLANK)
    return image[:, top:bottom, left:right]


def _median(image: Float[Tensor, "3 h w"], one: Detection) -> Float[Tensor, " 3"]:
    if one.mask is not None and one.mask.any():
        return image[:, one.mask.to(image.device)].median(-1).values
    left, top, right, bottom = _pixels(one, image)
    return image[:, top:bottom, left:right].flatten(1).median(-1).values


def _pixels(one: Detection, image: Tensor) -> tuple[int, int, int, int]:
    height, width = image.shape[-2:]
    left, top = min(max(round(one.box[0]), 0), width - 1), min(max(round(one.box[1]), 0), height - 1)
    right, bottom = min(max(round(one.box[2]), left + 1), width), min(max(round(one.box[3]), top + 1), height)
    return left, top, right, bottom
