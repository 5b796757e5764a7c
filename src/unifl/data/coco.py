"""COCO's own files: captions, instances (polygons and run-length codes), and COCO-Stuff maps.

One sample per caption: a picture with five captions is five samples. `images` is a folder such as `train2017`,
`captions` and `instances` are files such as `captions_train2017.json` and `instances_train2017.json`
(https://cocodataset.org/#format-data), `stuff` is the folder of `stuffthingmaps` PNG
(https://github.com/nightrome/cocostuff).

Labels are not COCO's ids, which leave gaps (80 categories with ids up to 90): a category's label is its place in the
file, or in `categories`. Crowds are left out: they are no instances.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from PIL import Image
from torch import Tensor

from unifl.data.batch import Sample
from unifl.data.coco_masks import check_code, compact_code, decode_mask, require_pycocotools
from unifl.data.pictures import (
    fit_picture,
    picture_size,
    read_map,
    read_picture,
    to_tensor,
    visible_instances,
)
from unifl.errors import UserError, nearest

_REMOVED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Ids that COCO gave up: 182 ids of things and stuff, 171 of them in use."""

IGNORED = 255


def stuff_labels() -> Int64[Tensor, " 256"]:
    """Label of each value of a COCO-Stuff map: value + 1 is the id, labels count the 171 ids in use.

    Things come first (0 to 79, in the order of COCO's ids), then stuff (80 to 170). Values that stand for nothing
    are -1; 255 stays 255.
    """
    table = torch.full((256,), -1, dtype=torch.long)
    used = [value for value in range(182) if value + 1 not in _REMOVED_IDS]
    table[used] = torch.arange(len(used))
    table[IGNORED] = IGNORED
    return table


class CocoImages:
    """Pictures with captions and annotations as COCO publishes them.

    Args:
        images: Folder of pictures.
        captions: `captions_*.json`.
        instances: `instances_*.json`; needs pycocotools.
        stuff: Folder of class maps, `<name of the picture>.png`.
        categories: Names in the order of their labels; None is the order of the instances file. Names that the
            file does not have keep their place and never occur.
        resolution: Side in px of the centre square that everything is scaled to; None leaves sizes alone.

    Raises:
        UserError: Something is missing or does not fit together; with the file and the id.
    """

    def __init__(
        self,
        images: str | Path,
        captions: str | Path,
        *,
        instances: str | Path | None = None,
        stuff: str | Path | None = None,
        categories: Sequence[str] | None = None,
        resolution: int | None = None,
    ) -> None:
        self.folder = _folder(images, "pictures")
        self.stuff = None if stuff is None else _folder(stuff, "class maps")
        self.resolution = resolution
        self._stuff_labels = stuff_labels()
        self._entries, self._rows = _captions(Path(captions).expanduser())
        self._annotations: dict[int, list[dict[str, Any]]] | None = None
        self.categories: list[str] = list(categories or ())
        if instances is not None:
            require_pycocotools()
            file = Path(instances).expanduser()
            content = _read(file, ("images", "annotations", "categories"))
            self._labels, self.categories = _category_labels(content["categories"], categories, file)
            wanted = {image_id for image_id, _ in self._rows}
            self._entries = _agreed(self._entries, content["images"], wanted, Path(captions), file)
            self._annotations = _by_image(content, self._labels, wanted, file)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """One caption with its picture and annotations.

        Raises:
            UserError: A file is missing, unreadable or of the wrong size.
        """
        image_id, caption = self._rows[index]
        entry = self._entries[image_id]
        path = self._path(entry)
        picture = read_picture(path)
        size = (picture.height, picture.width)
        _check_entry(entry, size, path)
        masks, labels = self._instances(image_id, size)
        return Sample(
            image=to_tensor(fit_picture(picture, self.resolution)),
            prompt=caption,
            masks=masks,
            labels=labels,
            semantic=self._semantic(path, size),
        )

    def picture(self, index: int) -> Image.Image:
        """The picture of one caption in its own size."""
        return read_picture(self._path(self._entries[self._rows[index][0]]))

    def picture_size(self, index: int) -> tuple[int, int]:
        """Its own (height, width), from the header of its file."""
        return self._size(self._rows[index][0])

    def caption(self, index: int) -> str:
        """One caption."""
        return self._rows[index][1]

    @property
    def label_counts(self) -> dict[str, int]:
        """How many labels the annotation may hold, by its kind."""
        found = {}
        if self._annotations is not None:
            found["masks"] = max(self._labels.values(), default=-1) + 1
        if self.stuff is not None:
            found["semantic"] = len(set(self._stuff_labels.tolist()) - {-1, IGNORED})
        return found

    def at(self, resolution: int | None) -> CocoImages:
        """The same data at another resolution; the annotations are shared."""
        other = copy(self)
        other.resolution = resolution
        return other

    def validate(self) -> None:
        """Check that every picture with a caption is there, and has the size that the annotations say.

        Headers are read, pictures are not decoded: COCO has 118,287 of them.

        Raises:
            UserError: The first problem, with the file and both sizes.
        """
        for image_id in dict.fromkeys(image_id for image_id, _ in self._rows):
            entry = self._entries[image_id]
            path = self._path(entry)
            size = picture_size(path)
            _check_entry(entry, size, path)
            for annotation in (self._annotations or {}).get(image_id, []):
                check_code(annotation, size)
            if self.stuff is not None:
                file = self.stuff / f"{path.stem}.png"
                _check_map(file, picture_size(file), path, size)

    def require_one_size(self) -> None:
        """Check that pictures can be stacked.

        Raises:
            UserError: Pictures of different sizes and no resolution that they are scaled to.
        """
        sizes = {self._size(image_id) for image_id, _ in self._rows} if self.resolution is None else set()
        if len(sizes) > 1:
            raise UserError(
                f"pictures in {self.folder} have sizes such as {sorted(sizes)[0]} and {sorted(sizes)[-1]} px; "
                "set `resolution` to bring pictures to one size"
            )

    def _size(self, image_id: int) -> tuple[int, int]:
        return picture_size(self._path(self._entries[image_id]))

    def _path(self, entry: Mapping[str, Any]) -> Path:
        return self.folder / str(entry["file_name"])

    def _instances(
        self, image_id: int, size: tuple[int, int]
    ) -> tuple[Bool[Tensor, "n h w"] | None, Int64[Tensor, " n"] | None]:
        if self._annotations is None:
            return None, None
        annotations = self._annotations.get(image_id, [])
        masks = [decode_mask(annotation, size) for annotation in annotations]
        pictures = [fit_picture(Image.fromarray(mask), self.resolution, nearest=True) for mask in masks]
        side = (self.resolution, self.resolution) if self.resolution is not None else size
        stacked = np.stack([np.array(p) for p in pictures]) if pictures else np.zeros((0, *side), np.uint8)
        labels = [self._labels[annotation["category_id"]] for annotation in annotations]
        return visible_instances(torch.from_numpy(stacked != 0), torch.tensor(labels, dtype=torch.long))

    def _semantic(self, path: Path, size: tuple[int, int]) -> Int64[Tensor, "h w"] | None:
        if self.stuff is None:
            return None
        file = self.stuff / f"{path.stem}.png"
        found = read_map(file)
        _check_map(file, (found.height, found.width), path, size)
        values = torch.from_numpy(
            np.array(fit_picture(found, self.resolution, nearest=True)).astype(np.int64)
        )
        if not 0 <= int(values.min()) <= int(values.max()) < len(self._stuff_labels):
            raise UserError(f"{file} holds values beyond 255; COCO-Stuff maps have one byte per pixel")
        labels = self._stuff_labels[values]
        if bool((labels < 0).any()):
            odd = int(values[labels < 0][0])
            raise UserError(
                f"{file} holds the value {odd}, which is no class of COCO-Stuff (id - 1 of the 171 ids in use, "
                "255 for none); give the folder of stuffthingmaps"
            )
        return labels


# --- the files -------------------------------------------------------------------------------------------


def _folder(path: str | Path, what: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of {what}; check the path")
    return folder


def _read(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}; check the path") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}; download it again") from error
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file} has no list `{key}`; give one of COCO's annotation files")
    found: dict[str, Any] = content
    return found


def _captions(file: Path) -> tuple[dict[int, dict[str, Any]], list[tuple[int, str]]]:
    """Entries of pictures by id, and one (picture, caption) per row in the order of the file."""
    content = _read(file, ("images", "annotations"))
    entries = {entry["id"]: entry for entry in content["images"]}
    rows = []
    for annotation in content["annotations"]:
        if not isinstance(annotation.get("caption"), str):
            raise UserError(
                f"annotation {annotation.get('id')} of {file} has no caption; give captions_*.json here, and "
                "instances_*.json as `instances`"
            )
        if annotation["image_id"] not in entries:
            raise UserError(
                f"caption {annotation.get('id')} of {file} is for the picture {annotation['image_id']}, which the "
                "file does not list; download it again, or remove the caption"
            )
        rows.append((annotation["image_id"], " ".join(annotation["caption"].split())))
    if not rows:
        raise UserError(f"{file} has no captions; give captions_*.json")
    return entries, rows


def _category_labels(
    listed: Sequence[Mapping[str, Any]], names: Sequence[str] | None, file: Path
) -> tuple[dict[int, int], list[str]]:
    """Label of each category id, and names in the order of labels."""
    own = [str(category["name"]) for category in listed]
    order = own if names is None else [str(name) for name in names]
    places = {name.casefold(): place for place, name in reversed(list(enumerate(order)))}
    for name in own:
        if name.casefold() not in places:
            guess = nearest(name, order)
            hint = f"did you mean {guess!r} to be it?" if guess else f"there are {len(order)} names."
            raise UserError(
                f"the category {name!r} of {file} is not among `categories`; {hint} Give the names in the order of "
                "the model's labels, spelled as in the file; where the model's order is the file's, as with models "
                "trained on COCO's 80 categories, leave out `categories` and `labels_of`"
            )
    return {category["id"]: places[str(category["name"]).casefold()] for category in listed}, order


def _agreed(
    entries: Mapping[int, Mapping[str, Any]],
    listed: Sequence[Mapping[str, Any]],
    wanted: set[int],
    captions: Path,
    instances: Path,
) -> dict[int, dict[str, Any]]:
    """Entries of the wanted pictures, which both files list, and alike."""
    known = {entry["id"]: entry for entry in listed}
    missing = sorted(wanted - set(known))
    if missing:
        raise UserError(
            f"{instances} does not list {len(missing)} of the {len(wanted)} pictures of {captions}, such as picture "
            f"{missing[0]}; give the instances of the same pictures (train2017 with train2017)"
        )
    for image_id in wanted:
        ours, theirs = entries[image_id], known[image_id]
        for key in ("file_name", "height", "width"):
            if key in ours and key in theirs and ours[key] != theirs[key]:
                raise UserError(
                    f"picture {image_id} has {key} {ours[key]} in {captions} and {theirs[key]} in {instances}; give "
                    "the files of the same pictures"
                )
    return {image_id: {**known[image_id], **entries[image_id]} for image_id in wanted}


def _by_image(
    content: Mapping[str, Any], labels: Mapping[int, int], wanted: set[int], file: Path
) -> dict[int, list[dict[str, Any]]]:
    """Annotations of single objects in the wanted pictures, by picture."""
    known = {entry["id"] for entry in content["images"]}
    found: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        for key, valid in (("image_id", known), ("category_id", labels)):
            if annotation.get(key) not in valid:
                what = "picture" if key == "image_id" else "category"
                raise UserError(
                    f"annotation {annotation.get('id')} of {file} has {key} {annotation.get(key)}, and the file lists "
                    f"no such {what}; download it again, or remove the annotation"
                )
        if annotation["image_id"] in wanted and not annotation.get("iscrowd"):
            kept = {key: annotation.get(key) for key in ("id", "image_id", "category_id")}
            kept["segmentation"] = compact_code(annotation)
            found.setdefault(annotation["image_id"], []).append(kept)
    return found


def _check_entry(entry: Mapping[str, Any], size: tuple[int, int], path: Path) -> None:
    said = (entry.get("height", size[0]), entry.get("width", size[1]))
    if said != size:
        raise UserError(
            f"{path} is {size[0]} x {size[1]} px, but the annotations say {said[0]} x {said[1]} (height x width); "
            "use the pictures that the annotations were made for"
        )


def _check_map(file: Path, found: tuple[int, int], path: Path, size: tuple[int, int]) -> None:
    if found != size:
        raise UserError(
            f"{file} is {found[0]} x {found[1]} px but its picture {path} is {size[0]} x {size[1]} px "
            "(height x width); a map must cover its picture"
        )
