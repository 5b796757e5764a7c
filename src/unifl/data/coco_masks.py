"""COCO's codes of masks, through pycocotools, which is imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unifl.errors import UserError


def require_pycocotools() -> Any:
    """The module that decodes masks.

    Raises:
        UserError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "reading COCO's instances needs pycocotools; pip install pycocotools, or leave out "
            "`instances` and let the critic find them in the pictures (gt_source: pseudo)"
        ) from error
    return mask


def decode_mask(annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The mask of an annotation, uint8 of 0 and 1.

    Args:
        annotation: With `segmentation` as `compact_code` gives it: polygons [x, y, x, y, ...] in px, or a run-length
            code {size, counts}, compressed or as a list.
        size: (height, width) of the picture.

    Raises:
        UserError: A code of another size, or one that cannot be decoded.
    """
    check_code(annotation, size)
    coder = require_pycocotools()
    height, width = size
    code = annotation["segmentation"]
    try:
        if isinstance(code, list):
            polygons = [polygon.tolist() for polygon in code]
            return np.asarray(coder.decode(coder.merge(coder.frPyObjects(polygons, height, width))))
        if isinstance(code["counts"], list):
            code = coder.frPyObjects(dict(code), height, width)
        return np.asarray(coder.decode(code))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"the mask of annotation {annotation.get('id')} cannot be decoded: {error}"
        ) from error


def compact_code(annotation: Mapping[str, Any]) -> list[np.ndarray] | Mapping[str, Any]:
    """The code of an annotation in a quarter of the memory: COCO's polygons hold tens of millions of numbers.

    Raises:
        UserError: Neither polygons nor a run-length code, or a polygon without three corners.
    """
    code, where = annotation.get("segmentation"), f"annotation {annotation.get('id')}"
    if isinstance(code, Mapping):
        return code
    if not isinstance(code, list) or not code:
        raise UserError(
            f"{where} has no segmentation; remove it, or give instances_*.json with masks (polygons or run lengths)"
        )
    try:
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in code]
    except (TypeError, ValueError) as error:
        raise UserError(f"the polygons of {where} are no numbers: {error}; correct or remove it") from error
    for polygon in polygons:
        if polygon.ndim != 1 or len(polygon) % 2 or len(polygon) < 6:
            raise UserError(
                f"a polygon of {where} has {polygon.size} numbers; it must list x and y of at least 3 corners in turn, "
                "so correct or remove it"
            )
    return polygons


def check_code(annotation: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Check a code's size without decoding it; polygons have none.

    Raises:
        UserError: Another size than the picture's.
    """
    code = annotation["segmentation"]
    if isinstance(code, Mapping) and tuple(code.get("size", ())) != size:
        raise UserError(
            f"the mask of annotation {annotation.get('id')} has size {code.get('size')}, but its picture "
            f"{annotation.get('image_id')} is {size[0]} x {size[1]} px (height x width); use the pictures that it was "
            "made for"
        )
