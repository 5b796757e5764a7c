"""Pictures of several aspect ratios, in batches of one size, with SDXL's six numbers.

Podell et al. (SDXL, arXiv 2307.01952), sections 2.2 and 2.3 and appendix I: pictures are scaled to cover the bucket
of the nearest aspect ratio and cut to it, every batch is of one bucket, and the model is told the original height and
width, how much was cut off at the top and at the left, and the height and width of the bucket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from unifl.data.batch import Sample
from unifl.data.pictures import to_tensor
from unifl.errors import UserError
from unifl.randomness import Key, permutation

Size = tuple[int, int]
"""(height, width) in px."""

Crop = Literal["center", "random"]

_LEAST_AREA = 0.9


def bucket_sizes(resolution: int, *, multiple: int = 64, max_aspect: float = 4.0) -> list[Size]:
    """Sizes of about resolution**2 px whose sides are multiples of `multiple`, from wide to tall.

    All (height, width) with 0.9 resolution**2 <= height * width <= resolution**2 and an aspect ratio between
    1 / max_aspect and max_aspect; of several sizes of one shape, the largest. With 1024, 64 and 4 these are the 40
    sizes of SDXL's appendix I and one more, 1344 x 704, whose mirror image is among the 40.

    Args:
        resolution: Side of the square in px.
        multiple: Of height and width. SDXL takes 64.
        max_aspect: Largest ratio of the longer to the shorter side; 1 leaves the square alone.

    Raises:
        UserError: A resolution that is no multiple, or a limit below 1.
    """
    if multiple < 1 or resolution < 1 or resolution % multiple:
        raise UserError(f"the resolution {resolution} is no multiple of {multiple}; change one of them")
    if max_aspect < 1:
        raise UserError(
            f"max_aspect is {max_aspect:g}; it is the longer side over the shorter one, at least 1"
        )
    area = resolution * resolution
    longest = int(resolution * math.sqrt(max_aspect))
    sides = range(multiple, longest + multiple, multiple)
    largest: dict[Fraction, Size] = {}
    for height in sides:  # ascending: of one shape, the largest stays
        for width in sides:
            fits = max(height, width) <= max_aspect * min(height, width)
            if fits and _LEAST_AREA * area <= height * width <= area:
                largest[Fraction(height, width)] = (height, width)
    return [largest[shape] for shape in sorted(largest)]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """Number of the bucket of nearest aspect ratio; of two, the first.

    Nearest means the smallest |log(h/w) - log(h'/w')|, so that a picture and its quarter turn are treated alike.

    Args:
        size: Of a picture.
        buckets: At least one.
    """
    ratio = math.log(size[0] / size[1])
    return min(range(len(buckets)), key=lambda n: abs(ratio - math.log(buckets[n][0] / buckets[n][1])))


def fit_to_bucket(
    picture: Image.Image, bucket: Size, *, crop: Crop = "center", key: Key | None = None
) -> tuple[Image.Image, Float[Tensor, " 6"]]:
    """Scale a picture to cover a bucket (Lanczos), and cut off what is too much.

    Args:
        picture: Any size.
        bucket: Size of the result.
        crop: What is kept: the middle, or a place drawn by the key.
        key: One row; needed for a random crop.

    Returns:
        The picture, and (original height, original width, top, left, bucket height, bucket width) in float32. Top and
        left are in px of the scaled picture, as in SDXL.

    Raises:
        UserError: A random crop without a key.
    """
    height, width = bucket
    scale = max(height / picture.height, width / picture.width)
    covering = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    spare_left, spare_top = covering[0] - width, covering[1] - height
    if crop == "center":
        top, left = spare_top // 2, spare_left // 2
    elif key is None:
        raise UserError("a random crop is drawn by a key; give one, or crop='center'")
    else:
        top = int(key.integers("crop/top", 0, spare_top + 1)[0])
        left = int(key.integers("crop/left", 0, spare_left + 1)[0])
    scaled = picture.resize(covering, Image.Resampling.LANCZOS) if covering != picture.size else picture
    numbers = [picture.height, picture.width, top, left, height, width]
    return scaled.crop((left, top, left + width, top + height)), torch.tensor(numbers, dtype=torch.float32)


@runtime_checkable
class PictureSource(Protocol):
    """Rows of whole pictures with captions: AnnotatedImages, CocoImages, ShardedPictures, HubPictures."""

    def __len__(self) -> int: ...

    def picture(self, index: int, /) -> Image.Image:
        """One picture in its own size, RGB."""
        ...

    def picture_size(self, index: int, /) -> tuple[int, int]:
        """Its (height, width), from a header where that is possible."""
        ...

    def caption(self, index: int, /) -> str:
        """Its caption."""
        ...


class BucketedPictures:
    """The rows of a source, each in the bucket nearest to its shape, with SDXL's six numbers in `Sample.time_ids`.

    Masks and class maps of the source are not read.

    Args:
        source: Whole pictures with captions; its own `resolution` has no effect here.
        resolution: See `bucket_sizes`.
        multiple: See `bucket_sizes`.
        max_aspect: See `bucket_sizes`; with 1 every picture becomes a square, with the numbers of its crop.
        crop: What is kept of a picture: the middle, or a place that depends on `seed` and the row.
        seed: Of random crops.

    Attributes:
        buckets: (height, width) by number.
        resolution: As given.

    Raises:
        UserError: Sizes that make no sense; see `bucket_sizes`.
    """

    def __init__(
        self,
        source: PictureSource,
        resolution: int,
        *,
        multiple: int = 64,
        max_aspect: float = 4.0,
        crop: Crop = "center",
        seed: int = 0,
    ) -> None:
        if crop not in ("center", "random"):
            raise UserError(f"crop is {crop!r}; write center or random")
        self.source = source
        self.resolution = resolution
        self.crop: Crop = crop
        self.seed = seed
        self.buckets = bucket_sizes(resolution, multiple=multiple, max_aspect=max_aspect)
        self._numbers: Int64[Tensor, " n"] | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """One picture in the size of its bucket, and its caption.

        Raises:
            UserError: The picture cannot be read.
        """
        picture = self.source.picture(index)
        bucket = self.buckets[nearest_bucket((picture.height, picture.width), self.buckets)]
        fitted, time_ids = fit_to_bucket(picture, bucket, crop=self.crop, key=Key(self.seed, 0, (index,)))
        return Sample(to_tensor(fitted), self.source.caption(index), time_ids=time_ids)

    def caption(self, index: int) -> str:
        """The caption of one picture."""
        return self.source.caption(index)

    def bucket_numbers(self, progress: Callable[[int, int], None] | None = None) -> Int64[Tensor, " n"]:
        """The bucket of every row. The first call reads the headers of all pictures.

        Args:
            progress: Called with (rows done, n).

        Raises:
            UserError: A picture cannot be read.
        """
        if self._numbers is None:
            numbers = []
            for index in range(len(self)):
                numbers.append(nearest_bucket(self.source.picture_size(index), self.buckets))
                if progress is not None:
                    progress(index + 1, len(self))
            self._numbers = torch.tensor(numbers, dtype=torch.int64)
        return self._numbers


class BucketOrder:
    """Which row each sample of a run reads, so that consecutive groups of `batch_size` share a bucket.

    In every epoch rows are shuffled within their bucket and cut into batches, and the batches are shuffled. Rows that
    do not fill a batch are dropped in that epoch; another epoch drops others. What `randomness.row_order` is for
    data without buckets, `row` is for data with buckets.

    Args:
        numbers: The bucket of each row.
        batch_size: Rows that go through the network together. Take the global batch where results must not depend
            on how it is cut up.
        seed: Seed of the run.
        purpose: Name of the source; two sources of one run are shuffled differently.

    Attributes:
        rows_per_epoch: Rows that an epoch reads.
        dropped_per_epoch: Rows that an epoch leaves out.
        never_read: Rows whose bucket has fewer than `batch_size`: no epoch reads them.

    Raises:
        UserError: A batch size below 1, or no bucket that fills a batch.
    """

    def __init__(
        self, numbers: Int64[Tensor, " n"], batch_size: int, *, seed: int, purpose: str = "buckets"
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be at least 1")
        self._numbers = numbers
        self._batch_size = batch_size
        self._seed = seed
        self._purpose = purpose
        sizes = torch.bincount(numbers) if len(numbers) else torch.zeros(1, dtype=torch.int64)
        self.rows_per_epoch = int((sizes // batch_size * batch_size).sum())
        self.dropped_per_epoch = len(numbers) - self.rows_per_epoch
        self.never_read = int(sizes[sizes < batch_size].sum())
        if self.rows_per_epoch == 0:
            raise UserError(
                f"no bucket has the {batch_size} pictures of a batch (the fullest has {int(sizes.max())}); lower the "
                "batch size or max_aspect, or add data"
            )
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def epoch(self, epoch: int) -> Int64[Tensor, " m"]:
        """The rows of one epoch in order, `rows_per_epoch` of them."""
        return self._epoch(epoch)

    def row(self, index: int) -> int:
        """The row of global sample `index`, counted from the start of the run."""
        return int(self._epoch(index // self.rows_per_epoch)[index % self.rows_per_epoch])

    def _draw(self, epoch: int) -> Int64[Tensor, " m"]:
        shuffled = permutation(len(self._numbers), self._seed, self._purpose, epoch)
        by_bucket = shuffled[self._numbers[shuffled].argsort(stable=True)]
        ends = torch.bincount(self._numbers).cumsum(0).tolist()
        batches = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            full = (end - start) // self._batch_size * self._batch_size
            batches.append(by_bucket[start : start + full].reshape(-1, self._batch_size))
        joined = torch.cat(batches)
        return joined[permutation(len(joined), self._seed, f"{self._purpose}/batches", epoch)].flatten()
