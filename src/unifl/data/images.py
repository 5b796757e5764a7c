"""Pictures with captions and, where there are any, instance masks and class maps.

Folder format: pictures and a `metadata.jsonl` with one object per picture,

    {"file_name": "0001.png", "text": "a red circle", "instances": "0001.npz", "semantic": "0001_map.png"}

`instances` is an `.npz` with `masks` (n, h, w) uint8 or bool and `labels` (n,); `semantic` is a PNG of class
indices. Both are optional, but a folder has each for all rows or for none.
"""

from __future__ import annotations

import zipfile
from copy import copy
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.lib import format as npy_format
from PIL import Image

from unifl.data.batch import Sample
from unifl.data.pictures import (
    check_picture,
    fit_picture,
    map_to_tensor,
    picture_size,
    read_map,
    read_picture,
    require_equal_sizes,
    to_tensor,
    visible_instances,
)
from unifl.data.text_files import json_rows, read_text
from unifl.disk import damage_as_value_error, read_arrays
from unifl.errors import UserError


@runtime_checkable
class AnnotatedSource(Protocol):
    """Anything indexed by row that gives a `Sample`; a list of samples is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def annotations_of(source: AnnotatedSource) -> frozenset[str]:
    """Which of "masks" and "semantic" a source provides, seen from its first sample."""
    first = source[0]
    found = {
        "masks": first.masks is not None and first.labels is not None,
        "semantic": first.semantic is not None,
    }
    return frozenset(name for name, there in found.items() if there)


class AnnotatedImages:
    """A folder of annotated pictures.

    Args:
        folder: See the top of this file.
        resolution: Side in px of the centre square that every picture, mask and map is scaled to. None takes
            them as they are; a batch then needs pictures of one size (`require_one_size`).

    Attributes:
        label_counts: How many labels the annotation holds, by its kind; instances alone, known once `validate` has run.

    Raises:
        UserError: No folder, no or an empty `metadata.jsonl`, a row without `file_name` or `text`, or an
            annotation that only some rows have.
    """

    def __init__(self, folder: str | Path, *, resolution: int | None = None) -> None:
        self.folder = Path(folder)
        self.resolution = resolution
        self.label_counts: dict[str, int] = {}
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}; check the path")
        metadata = self.folder / "metadata.jsonl"
        self.rows = json_rows(read_text(metadata), metadata)
        if not self.rows:
            raise UserError(f"{metadata} lists no pictures; write one JSON object per picture")
        for number, row in enumerate(self.rows, start=1):
            for key in ("file_name", "text"):
                if not isinstance(row.get(key), str):
                    raise UserError(f"row {number} of {metadata} has no text under `{key}`")
        for key in ("instances", "semantic"):
            having = sum(key in row for row in self.rows)
            if having not in (0, len(self.rows)):
                raise UserError(
                    f"{having} of {len(self.rows)} rows of {metadata} have `{key}`; give it for all or for none"
                )

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Read one picture and its annotations.

        Raises:
            UserError: A file is missing, unreadable or of the wrong size.
        """
        row = self.rows[index]
        path = self._path(index)
        picture = read_picture(path)
        size = (picture.height, picture.width)
        masks, labels = self._instances(row, path, size)
        return Sample(
            image=to_tensor(fit_picture(picture, self.resolution)),
            prompt=row["text"],
            masks=masks,
            labels=labels,
            semantic=self._semantic(row, path, size),
        )

    def picture(self, index: int) -> Image.Image:
        """One picture in its own size.

        Raises:
            UserError: It cannot be read.
        """
        return read_picture(self._path(index))

    def picture_size(self, index: int) -> tuple[int, int]:
        """Its own (height, width), from the header of its file.

        Raises:
            UserError: It cannot be read.
        """
        return picture_size(self._path(index))

    def caption(self, index: int) -> str:
        """The caption of one picture."""
        caption: str = self.rows[index]["text"]
        return caption

    def validate(self) -> None:
        """Check all rows: files, sizes and shapes, of masks by their headers alone.

        Raises:
            UserError: The first problem, with the file and both sizes.
        """
        for row in self.rows:
            path = self.folder / row["file_name"]
            size = check_picture(path)
            if "instances" in row:
                file = self.folder / row["instances"]
                shapes = {name: _npz_shape(file, name) for name in ("masks", "labels")}
                _check_instances(file, shapes["masks"], shapes["labels"], path, size)
                highest = int(_npz_array(file, "labels").max(initial=-1))
                self.label_counts["masks"] = max(self.label_counts.get("masks", 0), highest + 1)
            if "semantic" in row:
                _check_size(
                    self.folder / row["semantic"], check_picture(self.folder / row["semantic"]), path, size
                )

    def at(self, resolution: int | None) -> AnnotatedImages:
        """The same folder at another resolution."""
        other = copy(self)
        other.resolution = resolution
        return other

    def require_one_size(self) -> None:
        """Check that pictures can be stacked.

        Raises:
            UserError: Two pictures of different sizes and no resolution that both are scaled to.
        """
        if self.resolution is not None:
            return
        require_equal_sizes(len(self), self.picture_size, lambda index: str(self._path(index)))

    def _path(self, index: int) -> Path:
        return self.folder / self.rows[index]["file_name"]

    def _instances(
        self, row: dict, path: Path, size: tuple[int, int]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if "instances" not in row:
            return None, None
        file = self.folder / row["instances"]
        masks, labels = _npz_array(file, "masks"), _npz_array(file, "labels")
        _check_instances(file, masks.shape, labels.shape, path, size)
        if self.resolution is not None and len(masks):
            pictures = [Image.fromarray((mask != 0).astype(np.uint8)) for mask in masks]
            masks = np.stack([np.array(fit_picture(p, self.resolution, nearest=True)) for p in pictures])
        elif self.resolution is not None:
            masks = np.zeros((0, self.resolution, self.resolution), np.uint8)
        return visible_instances(torch.from_numpy(masks != 0), torch.from_numpy(labels.astype(np.int64)))

    def _semantic(self, row: dict, path: Path, size: tuple[int, int]) -> torch.Tensor | None:
        if "semantic" not in row:
            return None
        file = self.folder / row["semantic"]
        found = read_map(file)
        _check_size(file, (found.height, found.width), path, size)
        return map_to_tensor(fit_picture(found, self.resolution, nearest=True))


def _check_instances(
    file: Path, masks: tuple[int, ...], labels: tuple[int, ...], path: Path, size: tuple[int, int]
) -> None:
    if len(masks) != 3:
        raise UserError(f"`masks` in {file} has shape {masks}; it must be (instances, height, width)")
    _check_size(file, masks[1:], path, size)
    if labels != masks[:1]:
        raise UserError(
            f"{file} has {masks[0]} masks but `labels` of shape {labels}; give one label per mask"
        )


def _check_size(file: Path, found: tuple[int, ...], path: Path, size: tuple[int, int]) -> None:
    if tuple(found) != size:
        raise UserError(
            f"{file} is {found[0]} x {found[1]} px but its picture {path} is {size[0]} x {size[1]} px "
            "(height x width); a mask must cover its picture"
        )


def _npz_array(file: Path, name: str) -> np.ndarray:
    try:
        return read_arrays(file, name)[name]
    except ValueError as error:
        raise UserError(f"cannot read `{name}` from {file}: {error}") from error


def _npz_shape(file: Path, name: str) -> tuple[int, ...]:
    """Shape of an array from its header alone."""
    try:
        with (
            damage_as_value_error(),
            zipfile.ZipFile(file) as archive,
            archive.open(f"{name}.npy") as stream,
        ):
            version = npy_format.read_magic(stream)
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            return read(stream)[0]
    except ValueError as error:
        raise UserError(f"cannot read `{name}` from {file}: {error}") from error
