"""Preference data in the forms that people have, small enough for tests."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = {
    "a": (250, 10, 10),
    "b": (10, 250, 10),
    "c": (10, 10, 250),
    "d": (250, 250, 10),
    "e": (10, 250, 250),
}


def png(uid, size=(16, 16)):
    content = io.BytesIO()
    Image.new("RGB", size, COLOURS[uid]).save(content, "PNG")
    return content.getvalue()


def colour(image):
    """The uid that a picture shows."""
    mean = (image.mean((1, 2)).numpy() * 255).round()
    return next(uid for uid, value in COLOURS.items() if np.allclose(mean, value, atol=1))


def comparison(caption, first, second, label, **extra):
    """One row of Pick-a-Pic; `label` is the first picture's."""
    return {
        "caption": caption,
        "jpg_0": png(first),
        "jpg_1": png(second),
        "label_0": label,
        "label_1": None if label is None else 1 - label,
        "image_0_uid": first,
        "image_1_uid": second,
    } | extra


def write_parquet(path, rows, *, group=2, structs=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    if structs:  # as the Image feature of `datasets` stores pictures
        rows = [
            row | {name: {"bytes": row[name], "path": None} for name in ("jpg_0", "jpg_1")} for row in rows
        ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_pictures(folder, **sizes):
    folder.mkdir(parents=True, exist_ok=True)
    for uid in COLOURS:
        (folder / f"{uid}.png").write_bytes(png(uid, sizes.get(uid, (16, 16))))
