"""One annotated picture, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unifl.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A picture with its caption and whatever is known about its pixels.

    Attributes:
        image: In [0, 1].
        prompt: Caption.
        masks: One mask per instance, or None when instances are not annotated.
        labels: Category of each instance, from 0.
        semantic: Class of each pixel, from 0, or None when not annotated.
        time_ids: SDXL's six numbers (see `unifl.data.buckets`) where they are known, or None for a whole picture.
    """

    image: Float[Tensor, "3 h w"]
    prompt: str
    masks: Bool[Tensor, "n h w"] | None = None
    labels: Int64[Tensor, " n"] | None = None
    semantic: Int64[Tensor, "h w"] | None = None
    time_ids: Float[Tensor, " 6"] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples stacked; instances stay in lists because every picture has its own number of them.

    Attributes:
        images: In [0, 1].
        prompts: b captions.
        masks: b tensors (n_i, h, w) of bool, or None.
        labels: b tensors (n_i,) of int64, or None.
        semantic: Class maps, or None.
        time_ids: SDXL's six numbers per sample, or None.
    """

    images: Float[Tensor, "b 3 h w"]
    prompts: list[str]
    masks: list[Tensor] | None = None
    labels: list[Tensor] | None = None
    semantic: Int64[Tensor, "b h w"] | None = None
    time_ids: Float[Tensor, "b 6"] | None = None

    def __len__(self) -> int:
        """Number of samples b."""
        return len(self.prompts)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            images=self.images.to(device),
            prompts=self.prompts,
            masks=None if self.masks is None else [masks.to(device) for masks in self.masks],
            labels=None if self.labels is None else [labels.to(device) for labels in self.labels],
            semantic=None if self.semantic is None else self.semantic.to(device),
            time_ids=None if self.time_ids is None else self.time_ids.to(device),
        )

    def with_prompts(self, prompts: list[str]) -> Batch:
        """The same pictures with other captions."""
        return replace(self, prompts=prompts)

    def with_instances(self, masks: list[Tensor], labels: list[Tensor]) -> Batch:
        """The same pictures with other instances."""
        return replace(self, masks=masks, labels=labels)

    def with_semantic(self, semantic: Int64[Tensor, "b h w"]) -> Batch:
        """The same pictures with other class maps."""
        return replace(self, semantic=semantic)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples.

    An annotation, and likewise the time ids, is kept only when every sample has it.

    Raises:
        UserError: No samples, or pictures of several sizes.
    """
    if not samples:
        raise UserError("cannot make a batch of no samples")
    sizes = sorted({tuple(sample.image.shape[-2:]) for sample in samples})
    if len(sizes) > 1:
        raise UserError(
            f"pictures of several sizes {sizes} in one batch; set `resolution` for the data set, or draw rows of one "
            "bucket at a time"
        )
    masks = [sample.masks for sample in samples if sample.masks is not None]
    labels = [sample.labels for sample in samples if sample.labels is not None]
    semantic = [sample.semantic for sample in samples if sample.semantic is not None]
    time_ids = [sample.time_ids for sample in samples if sample.time_ids is not None]
    with_instances = len(masks) == len(labels) == len(samples)
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        prompts=[sample.prompt for sample in samples],
        masks=masks if with_instances else None,
        labels=labels if with_instances else None,
        semantic=torch.stack(semantic) if len(semantic) == len(samples) else None,
        time_ids=torch.stack(time_ids) if len(time_ids) == len(samples) else None,
    )
