"""Encode pictures and captions once, into files that training reads.

Every file is written whole or not at all and noted in the manifest, so encoding that was interrupted goes on at the
first file that is missing. No batch reaches over the end of a file: what is in a file does not depend on where
encoding was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from unifl.data.batch import Sample
from unifl.data.encoded import EncodedPictures, has_size, shard_captions
from unifl.data.images import AnnotatedSource
from unifl.data.manifest import (
    MANIFEST,
    CacheType,
    Manifest,
    ShardRecord,
    check_identity,
    identify,
    read_manifest,
    shard_name,
)
from unifl.disk import require_free_space, require_writable, write_atomically
from unifl.errors import UserError
from unifl.models.generator import Generator

_TYPES = {"float32": torch.float32, "float16": torch.float16}


def encode_source(
    generator: Generator,
    source: AnnotatedSource,
    folder: str | Path,
    *,
    batch_size: int = 8,
    rows_per_shard: int = 1000,
    dtype: CacheType = "float32",
    with_text: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedPictures:
    """Encode a source, or go on with it, or find that it is done.

    Args:
        generator: Whose autoencoder and text encoders encode.
        source: Pictures with captions of one size, or `BucketedPictures`.
        folder: Where files go; one folder per source, encoder and resolution.
        batch_size: Pictures per call of the autoencoder. Another one may change the last bits.
        rows_per_shard: Rows per file. A file is held in memory twice while it is written.
        dtype: Of what is kept. float32 takes twice the room and is the default: float16 rounds a mean of 1 to
            multiples of 0.001, which may be more than the posterior spreads, and the draw would be lost in it.
        with_text: Keep embeddings too. They are larger than the latents (SD 1.5: 237 kB a row beside 131 kB; SDXL:
            636 kB beside 524 kB, in float32), and save the text encoder's evaluations and its memory.
        progress: Called with (rows done, n), first with what was there already.

    Returns:
        The finished cache.

    Raises:
        UserError: Before anything is encoded: no rows, a folder with something else in it, a text encoder that
            trains, too little room. While encoding: a picture that cannot be read, or is of another size; values
            that are not finite.
    """
    folder = Path(folder)
    plan = _plan(generator, source, batch_size, rows_per_shard, dtype, with_text)
    require_writable(folder / MANIFEST)
    manifest = _resumed(folder, plan, source)
    todo = [n for n in range(plan.num_shards) if shard_name(n) not in manifest.shards]
    rows_left = sum(len(manifest.shard_rows(number)) for number in todo)
    require_free_space(folder, rows_left * _bytes_per_row(generator, plan))
    done = plan.rows - rows_left
    if progress is not None:
        progress(done, plan.rows)
    for number in todo:
        shard = _ShardWriter(generator, manifest, batch_size)
        for row in manifest.shard_rows(number):
            shard.add(row, source[row])
            done += 1
            if progress is not None:
                progress(done, plan.rows)
        content = shard.finish()
        write_atomically(folder / shard_name(number), content)
        record = ShardRecord(
            len(manifest.shard_rows(number)), len(content), hashlib.sha256(content).hexdigest()
        )
        manifest = replace(
            manifest, shards=dict(sorted({**manifest.shards, shard_name(number): record}.items()))
        )
        manifest.write(folder)
    return EncodedPictures(folder)


class _ShardWriter:
    """Collects the rows of one file; pictures of one size go through the autoencoder together."""

    def __init__(self, generator: Generator, manifest: Manifest, batch_size: int) -> None:
        self._generator = generator
        self._manifest = manifest
        self._batch_size = batch_size
        self._type = _TYPES[manifest.dtype]
        self._waiting: dict[int, list[tuple[int, Tensor]]] = {}
        self._latents: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._buckets: list[int] = []
        self._prompts: list[str] = []
        self._time_ids: list[Tensor] = []

    def add(self, row: int, sample: Sample) -> None:
        """Take a row; its picture may be encoded later."""
        bucket = self._bucket_of(row, sample)
        self._buckets.append(bucket)
        self._prompts.append(sample.prompt)
        if sample.time_ids is not None:
            self._time_ids.append(sample.time_ids)
        waiting = self._waiting.setdefault(bucket, [])
        waiting.append((row, sample.image))
        if len(waiting) == self._batch_size:
            self._encode(bucket)

    def finish(self) -> bytes:
        """The file."""
        for bucket in list(self._waiting):
            if self._waiting[bucket]:
                self._encode(bucket)
        prompts = torch.frombuffer(bytearray(json.dumps(self._prompts).encode()), dtype=torch.uint8)
        tensors = {"prompts": prompts, "bucket": torch.tensor(self._buckets, dtype=torch.int32)}
        for bucket, parts in self._latents.items():
            tensors[f"mean.{bucket}"] = torch.cat([mean for mean, _ in parts])
            tensors[f"std.{bucket}"] = torch.cat([std for _, std in parts])
        if self._manifest.with_time_ids:
            tensors["time_ids"] = torch.stack(self._time_ids)  # float16 ends at 65504 and skips from 2048 on
        if self._manifest.with_text:
            tensors |= self._embeddings()
        # the autoencoder may answer in the layout of channels last
        return bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _bucket_of(self, row: int, sample: Sample) -> int:
        size = (sample.image.shape[1], sample.image.shape[2])
        if size not in self._manifest.sizes:
            raise UserError(
                f"the picture of row {row} is {size[0]} x {size[1]} px, and the first is of another size; set the "
                "data set's resolution, or use BucketedPictures"
            )
        if (sample.time_ids is not None) != self._manifest.with_time_ids:
            raise UserError(
                f"row {row} and the first row differ in having time ids; give them for all or none"
            )
        return self._manifest.sizes.index(size)

    def _encode(self, bucket: int) -> None:
        rows, images = zip(*self._waiting.pop(bucket), strict=True)
        mean, std = self._generator.posterior(torch.stack(images))
        mean, std = mean.to("cpu", self._type), std.to("cpu", self._type)
        finite = (mean.isfinite() & std.isfinite()).flatten(1).all(1).tolist()
        if not all(finite):
            raise UserError(
                f"the autoencoder gives no finite latents for row {rows[finite.index(False)]}; load the model in "
                "float32 (SDXL's own autoencoder overflows in float16)"
            )
        self._latents.setdefault(bucket, []).append((mean, std))

    def _embeddings(self) -> dict[str, Tensor]:
        encoded = self._generator.encode_prompts(self._prompts)
        found = {"embeds": encoded.embeds.to("cpu", self._type)}
        if encoded.pooled is not None:
            found["pooled"] = encoded.pooled.to("cpu", self._type)
        return found


def _plan(
    generator: Generator,
    source: AnnotatedSource,
    batch_size: int,
    rows_per_shard: int,
    dtype: CacheType,
    with_text: bool,
) -> Manifest:
    """The manifest of a cache without files."""
    for name, value in (("batch_size", batch_size), ("rows_per_shard", rows_per_shard)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if dtype not in _TYPES:
        raise UserError(f"dtype is {dtype!r}; write {' or '.join(_TYPES)}")
    if len(source) == 0:
        raise UserError("the data to encode have no rows; check their file or folder")
    if with_text and generator.trains_text:
        raise UserError(
            "a text encoder of this model trains, so its embeddings cannot be kept; set with_text=False"
        )
    first = source[0]
    sizes, image_size = _sizes(source, first)
    if image_size != tuple(generator.image_size):
        raise UserError(
            f"the pictures are made for {image_size[0]} x {image_size[1]} px and the model draws "
            f"{generator.image_size[0]} x {generator.image_size[1]}; set the data's resolution, or the model's"
        )
    channels, latent_height, _ = generator.latent_shape
    factor = generator.image_size[0] // latent_height
    for height, width in sizes:
        if height % factor or width % factor:
            raise UserError(
                f"the bucket of {height} x {width} px is no multiple of the autoencoder's {factor}; set the buckets' "
                "multiple to one (SDXL takes 64)"
            )
    return Manifest(
        rows=len(source),
        rows_per_shard=rows_per_shard,
        dtype=dtype,
        image_size=image_size,
        sizes=sizes,
        latent_shapes=[(channels, height // factor, width // factor) for height, width in sizes],
        with_text=with_text,
        with_time_ids=first.time_ids is not None,
        mixed_precision=generator.mixed_precision,
        encoder=identify(generator, with_text=with_text),
    )


def _sizes(source: AnnotatedSource, first: Sample) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(height, width) of pictures by bucket, and the size that the model should have."""
    buckets, resolution = getattr(source, "buckets", None), getattr(source, "resolution", None)
    if buckets is not None and resolution is not None:
        return list(buckets), (resolution, resolution)
    size = (first.image.shape[1], first.image.shape[2])
    return [size], size


def _resumed(folder: Path, plan: Manifest, source: AnnotatedSource) -> Manifest:
    """What an earlier run left in the folder, if it was about the same; otherwise the plan, written down."""
    if not (folder / MANIFEST).exists():
        plan.write(folder)
        return plan
    found = read_manifest(folder)
    check_identity(found, folder, plan.encoder, plan.image_size)
    for name in ("rows", "rows_per_shard", "dtype", "sizes", "with_text", "with_time_ids", "mixed_precision"):
        theirs, ours = getattr(found, name), getattr(plan, name)
        if theirs != ours:
            raise UserError(
                f"{folder} was begun with {name} {_short(theirs)}, and this asks for {_short(ours)}; go on with the "
                "same, or encode into another folder"
            )
    kept = {}
    for name, record in found.shards.items():
        if has_size(folder / name, record):
            kept[name] = record
        elif (folder / name).exists():
            raise UserError(f"{folder / name} is cut short or altered; remove it, and it is made again")
    finished = replace(found, shards=kept)
    _same_captions(folder, finished, source)
    return finished


def _same_captions(folder: Path, manifest: Manifest, source: AnnotatedSource) -> None:
    """Compare the first caption of every file that is there, so that other data do not pass for the same."""
    caption = getattr(source, "caption", None)
    for name in manifest.shards:
        row = manifest.shard_rows(int(name[len("shard-") : -len(".safetensors")]))[0]
        ours = caption(row) if caption is not None else source[row].prompt
        theirs = shard_captions(folder / name)[0]
        if ours != theirs:
            raise UserError(
                f"row {row} of {folder} is {theirs!r}, and of the data {ours!r}: other data; encode them into another "
                "folder"
            )


def _bytes_per_row(generator: Generator, plan: Manifest) -> int:
    numbers = 2 * max(channels * height * width for channels, height, width in plan.latent_shapes)
    if plan.with_text:
        empty = generator.encode_prompts([""])
        numbers += empty.embeds.numel() + (0 if empty.pooled is None else empty.pooled.numel())
    return numbers * _TYPES[plan.dtype].itemsize


def _short(value: object) -> str:
    shown = str(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
