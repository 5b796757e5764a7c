"""Detectors of transformers: what is on a picture, where, and how sure that is.

Three kinds answer here: segmenters with queries (Mask2Former, MaskFormer), detectors with boxes (DETR and its
relatives), and detectors that are told in words what to look for (OWL-ViT, OWLv2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.preprocessing import Preprocessing
from unifl.feedback.pretrained import checkpoint_type, find_place, label_names, load_checkpoint

LEAST = 0.05
"""Detections that are less sure than this are dropped: no rule looks at them."""
_SHORTER, _LONGER = 800, 1333
"""Px of the sides at which a segmenter looks, whatever its processor says: GenEval's thresholds are for Mask2Former as
mmdet's config shows it pictures, and processors published for transformers squash them to 384 px a side."""
_OVERLAP = 0.5  # intersection over union above which two answers of OWL are one object
_PATTERN = "a photo of a {}"


@dataclass(frozen=True, eq=False)
class Detection:
    """One object.

    Attributes:
        label: What it is.
        score: How sure, in [0, 1].
        box: Left, top, right, bottom in px.
        mask: Its pixels, where the detector says; None otherwise.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: Bool[Tensor, "h w"] | None = None


@runtime_checkable
class Detector(Protocol):
    """Finds objects.

    Attributes:
        labels: What it can find; None where any words will do.
    """

    labels: frozenset[str] | None

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], wanted: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """Detections of each picture, the surest first; of labels that are wanted there, and no others."""
        ...


def open_detector(name: str, *, revision: str | None = None) -> Detector:
    """A detector by hub name or folder; frozen, in float32, on the CPU.

    Raises:
        UserError: Nothing there, a model of another kind, or weights that are missing.
    """
    kind = checkpoint_type(name, revision=revision)
    if kind in ("owlvit", "owlv2"):
        return _WordDetector(name, revision, square=kind == "owlv2")
    if kind in ("mask2former", "maskformer"):
        model, preprocessing = load_checkpoint(name, "instances", revision=revision)
        preprocessing = preprocessing.at(_SHORTER, longest=_LONGER)
        return _LabelDetector(model, preprocessing, label_names(name, revision=revision), _read_masks)
    model, preprocessing = load_checkpoint(name, "objects", revision=revision)
    return _LabelDetector(model, preprocessing, label_names(name, revision=revision), _read_boxes)


Read = Callable[[Any, Sequence[str], Sequence[str], tuple[int, int], int], list[Detection]]


class _LabelDetector(nn.Module):
    """A network with a fixed list of labels.

    Args:
        model: Takes `pixel_values`.
        preprocessing: From pictures in [0, 1] to what it is shown.
        names: Of its labels, in the order of its outputs.
        read: From its answer to the detections of one picture.
    """

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, names: Sequence[str], read: Read
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.names, self.read = model, preprocessing, list(names), read
        self.labels: frozenset[str] | None = frozenset(names)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "b 3 h w"], wanted: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        size = (images.shape[-2], images.shape[-1])
        found = self.model(pixel_values=self.preprocessing(images))
        return [_sorted(self.read(found, self.names, labels, size, row)) for row, labels in enumerate(wanted)]


class _WordDetector(nn.Module):
    """OWL: told what to look for, one picture at a time, as each has words of its own."""

    def __init__(self, name: str, revision: str | None, *, square: bool) -> None:
        from transformers import AutoTokenizer

        super().__init__()
        self.model, self.preprocessing = load_checkpoint(name, "words", revision=revision)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(find_place(name), revision=revision)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{name} has no tokenizer that can be read ({error}); save it beside the model"
            ) from error
        self.square = square
        self.labels: frozenset[str] | None = None

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "b 3 h w"], wanted: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        return [self._one(image, list(labels)) for image, labels in zip(images, wanted, strict=True)]

    def _one(self, image: Float[Tensor, "3 h w"], labels: list[str]) -> list[Detection]:
        height, width = image.shape[-2:]
        if self.square:
            image = _squared(image)
        config: Any = self.model.config
        length = config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            [_PATTERN.format(label) for label in labels],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).to(image.device)
        found = self.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=self.preprocessing(image[None]),
        )
        size = (image.shape[-2], image.shape[-1])
        scores = found.logits[0].sigmoid()
        every = [
            Detection(labels[column], float(scores[row, column]), _inside(box, height, width))
            for row, column in (scores >= LEAST).nonzero().tolist()
            for box in [_corners(found.pred_boxes[0, row], size)]
        ]
        return _distinct(_sorted(every))


def _squared(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s s"]:
    """Black below or to the right, as OWLv2 was trained; early versions of transformers made it grey."""
    height, width = image.shape[-2:]
    side = max(height, width)
    return F.pad(image, (0, side - width, 0, side - height))


def _read_masks(
    found: Any, names: Sequence[str], labels: Sequence[str], size: tuple[int, int], row: int
) -> list[Detection]:
    """A query's score for a label is its probability times the mean probability inside its mask."""
    probabilities = found.class_queries_logits[row].softmax(-1)
    columns = [names.index(label) for label in labels]
    kept = (probabilities[:, columns] >= LEAST).any(-1).nonzero()[:, 0].tolist()
    if not kept:
        return []
    logits = found.masks_queries_logits[row, kept][None]
    inside = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].sigmoid()
    detections = []
    for query, mask in zip(kept, inside, strict=True):
        pixels = mask > 0.5
        if not pixels.any():
            continue
        sure = float(mask[pixels].mean())
        scores = ((label, float(probabilities[query, names.index(label)]) * sure) for label in labels)
        detections += [
            Detection(label, score, _around(pixels), pixels) for label, score in scores if score >= LEAST
        ]
    return detections


def _read_boxes(
    found: Any, names: Sequence[str], labels: Sequence[str], size: tuple[int, int], row: int
) -> list[Detection]:
    """One output more than labels is "no object" behind a softmax (DETR); otherwise each label stands alone."""
    logits = found.logits[row]
    scores = logits.softmax(-1) if logits.shape[-1] == len(names) + 1 else logits.sigmoid()
    return [
        Detection(label, float(score), _inside(_corners(box, size), *size))
        for label in labels
        for score, box in zip(scores[:, names.index(label)], found.pred_boxes[row], strict=True)
        if score >= LEAST
    ]


def _corners(box: Float[Tensor, " 4"], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """From centre and size, as shares of the picture, to px."""
    x, y, width, height = (float(value) for value in box)
    return (
        (x - width / 2) * size[1],
        (y - height / 2) * size[0],
        (x + width / 2) * size[1],
        (y + height / 2) * size[0],
    )


def _inside(
    box: tuple[float, float, float, float], height: int, width: int
) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))


def _around(mask: Bool[Tensor, "h w"]) -> tuple[float, float, float, float]:
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _sorted(detections: list[Detection]) -> list[Detection]:
    return sorted(detections, key=lambda one: -one.score)


def _distinct(detections: list[Detection]) -> list[Detection]:
    """The surest of those of one label that lie on each other."""
    kept: list[Detection] = []
    for one in detections:
        if all(one.label != other.label or overlap(one.box, other.box) < _OVERLAP for other in kept):
            kept.append(one)
    return kept


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    shared = width * height
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if both > 0 else 0.0
