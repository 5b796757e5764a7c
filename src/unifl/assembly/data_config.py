"""Data in a recipe, beyond a name or a path: COCO's files, and pictures with captions in any of their forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unifl.errors import UserError


@dataclass(kw_only=True)
class CocoConfig:
    """Pictures as COCO publishes them, see `unifl.data.coco`; one row per caption."""

    kind: Literal["coco"] = "coco"
    images: str
    """Folder of pictures, such as train2017."""
    captions: str
    """captions_*.json."""
    instances: str | None = None
    """instances_*.json; needs pycocotools."""
    stuff: str | None = None
    """Folder of COCO-Stuff's class maps (stuffthingmaps)."""
    labels_of: str | None = None
    """A checkpoint whose labels (`id2label`) give the order of categories; null is the order of the file."""
    categories: list[str] | None = None
    """That order by name."""

    def __post_init__(self) -> None:
        if self.labels_of is not None and self.categories is not None:
            raise UserError("labels_of and categories both order the labels; give one of them")


@dataclass(kw_only=True)
class BucketsConfig:
    """Pictures in the shape that is nearest to their own, as SDXL was trained; see `unifl.data.buckets`."""

    multiple: int = 64
    """Sides are multiples of it, in pixels."""
    max_aspect: float = 4.0
    """Largest ratio of the sides."""
    crop: Literal["center", "random"] = "center"
    """What is kept where the shape is not exactly met."""


@dataclass(kw_only=True)
class EncodeConfig:
    """Encode everything once, and read that from then on; see `unifl.data.encode`."""

    folder: str
    """Gets the files; used again by later runs on the same pictures and encoder."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of what is kept; float16 rounds away part of what the posterior spreads."""
    with_text: bool = False
    """Keep embeddings of the captions too, which are larger than the latents."""
    batch_size: int = 8
    """Pictures per call of the autoencoder."""
    rows_per_shard: int = 1000
    """Rows per file."""


@dataclass(kw_only=True)
class PicturesConfig:
    """Pictures with captions; exactly one of `folder`, `shards`, `hub` and `source` says where they are."""

    kind: Literal["pictures"] = "pictures"
    folder: str | None = None
    """Pictures and a metadata.jsonl."""
    shards: str | list[str] | None = None
    """Webdataset shards: a file, a pattern such as "shards/{00000..00012}.tar", a folder, or several of these."""
    hub: str | None = None
    """A data set of Hugging Face by name or folder; needs `datasets`."""
    source: str | None = None
    """`world:scenes`, `world:curated`, or `package.module:name`."""
    caption_key: str = "caption"
    """For shards: where a .json holds the caption."""
    allow_incomplete: bool = False
    """For shards: use what is whole of a shard that was cut short."""
    skip_without_caption: bool = False
    """For shards: leave such pictures out."""
    split: str = "train"
    """For a hub data set."""
    image_column: str = "image"
    """For a hub data set."""
    caption_column: str = "text"
    """For a hub data set."""
    buckets: BucketsConfig | None = None
    """Several shapes; null brings every picture to the model's square."""
    encode: EncodeConfig | None = None
    """Encode once; null encodes in every step."""
    caption_dropout: float = 0.0
    """Share of rows that lose their caption, drawn anew in every step."""

    def __post_init__(self) -> None:
        given = [name for name in ("folder", "shards", "hub", "source") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise UserError(f"pictures come from one of folder, shards, hub and source, and {found} is given")
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"caption_dropout is {self.caption_dropout}; it must be in [0, 1]")
        if self.buckets is not None and self.source is not None:
            raise UserError("buckets need files of pictures; give folder, shards or hub in place of source")
