"""Pictures that were encoded once: posteriors of the autoencoder by row, read from a folder.

The folder holds `manifest.json` and safetensors files of `rows_per_shard` rows each. A row keeps the mean and the
standard deviation of the autoencoder's posterior, not one draw from it, so that training sees a fresh draw every time
as it would without the cache. `unifl.data.encode.encode_source` writes it.

A file has `prompts` (JSON, as bytes), `bucket` (rows,), for every bucket n that occurs `mean.n` and `std.n`
(k, c, h, w) of its rows in order, and, where they are kept, `embeds` (rows, l, d), `pooled` (rows, p) and `time_ids`
(rows, 6).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unifl.data.captions import dropped_captions
from unifl.data.encoded_sample import EncodedSample as EncodedSample
from unifl.data.manifest import Manifest, ShardRecord, check_identity, identify, read_manifest, shard_name
from unifl.disk import file_sha256
from unifl.errors import UserError
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.randomness import Key

_OPEN_SHARDS = 32


@dataclass(frozen=True)
class EncodedBatch:
    """Rows of a cache, stacked; see `EncodedSample`."""

    prompts: list[str]
    mean: Float[Tensor, "b c h w"]
    std: Float[Tensor, "b c h w"]
    embeds: Float[Tensor, "b l d"] | None = None
    pooled: Float[Tensor, "b p"] | None = None
    time_ids: Float[Tensor, "b 6"] | None = None

    def __len__(self) -> int:
        """Number of rows b."""
        return len(self.prompts)

    def to(self, device: torch.device | str) -> EncodedBatch:
        """The same batch on another device."""
        return EncodedBatch(
            self.prompts,
            self.mean.to(device),
            self.std.to(device),
            None if self.embeds is None else self.embeds.to(device),
            None if self.pooled is None else self.pooled.to(device),
            None if self.time_ids is None else self.time_ids.to(device),
        )

    def draw(self, key: Key) -> Float[Tensor, "b c h w"]:
        """Latents mean + std * noise, with the noise of `Generator.encode(images, key=key)`.

        They equal what that gives for the same pictures, up to the precision of the cache.

        Args:
            key: Address of the rows.
        """
        noise = key.normal("posterior", self.mean.shape[1:], device=self.mean.device)
        return self.mean + self.std * noise

    @property
    def cond(self) -> Conditioning | None:
        """The kept embeddings, for `Generator.denoise`; None where none are kept.

        Without time ids in the cache it has none either: SDXL then takes `Generator.time_ids`.
        """
        return None if self.embeds is None else Conditioning(self.embeds, self.pooled, self.time_ids)

    def drop_captions(
        self, probability: float, key: Key, *, empty: Conditioning | None = None
    ) -> EncodedBatch:
        """The same rows, some without their caption, as `unifl.data.captions.drop_captions` chooses them.

        Args:
            probability: In [0, 1].
            key: Address of the rows.
            empty: The empty prompt, encoded (batch size 1); needed where embeddings are kept.

        Raises:
            UserError: Embeddings are kept, and `empty` was not given.
        """
        dropped = dropped_captions(key, probability)
        prompts = [
            "" if gone else prompt for prompt, gone in zip(self.prompts, dropped.tolist(), strict=True)
        ]
        if self.embeds is None:
            return replace(self, prompts=prompts)
        if empty is None:
            raise UserError(
                "the cache keeps embeddings, so the empty prompt's are needed to drop captions; give "
                'empty=generator.encode_prompts([""])'
            )
        gone = dropped.to(self.embeds.device)
        embeds = torch.where(gone[:, None, None], empty.embeds.to(self.embeds), self.embeds)
        pooled = self.pooled
        if pooled is not None and empty.pooled is not None:
            pooled = torch.where(gone[:, None], empty.pooled.to(pooled), pooled)
        return replace(self, prompts=prompts, embeds=embeds, pooled=pooled)


def collate_encoded(samples: Sequence[EncodedSample]) -> EncodedBatch:
    """Stack rows of a cache.

    Raises:
        UserError: No rows, or latents of several sizes.
    """
    if not samples:
        raise UserError("cannot make a batch of no samples")
    sizes = sorted({tuple(sample.mean.shape[1:]) for sample in samples})
    if len(sizes) > 1:
        raise UserError(
            f"latents of several sizes {sizes} in one batch; draw rows of one bucket at a time (BucketOrder)"
        )
    return EncodedBatch(
        [sample.prompt for sample in samples],
        torch.stack([sample.mean for sample in samples]),
        torch.stack([sample.std for sample in samples]),
        _stack([sample.embeds for sample in samples]),
        _stack([sample.pooled for sample in samples]),
        _stack([sample.time_ids for sample in samples]),
    )


class EncodedPictures:
    """The rows of a finished cache, by number. Files are mapped into memory, 32 of them at a time.

    Args:
        folder: Where `encode_source` wrote.

    Attributes:
        manifest: What the cache says of itself.
        buckets: (height, width) in px by bucket number.

    Raises:
        UserError: No cache, an unfinished one, or a file that is missing or has another size than it was written with.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        done, wanted = len(self.manifest.shards), self.manifest.num_shards
        if done < wanted:
            raise UserError(
                f"{self.folder} is not finished: {done} of {wanted} shards are there; encode the same data into it "
                "again, which goes on where it stopped"
            )
        for name, record in self.manifest.shards.items():
            if not has_size(self.folder / name, record):
                raise _altered(self.folder / name)
        self.buckets = list(self.manifest.sizes)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._numbers: Int64[Tensor, " n"] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.manifest.rows

    def __getitem__(self, index: int) -> EncodedSample:
        """Read one row.

        Raises:
            UserError: Its file cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, row = divmod(index, self.manifest.rows_per_shard)
        return self._shard(number).sample(row)

    def caption(self, index: int) -> str:
        """The caption of one row."""
        return self[index].prompt

    def bucket_numbers(self) -> Int64[Tensor, " n"]:
        """The bucket of every row, for `BucketOrder`; the first call opens every file."""
        if self._numbers is None:
            shards = [self._shard(number).bucket for number in range(self.manifest.num_shards)]
            self._numbers = torch.cat(shards)
        return self._numbers

    def check(self, generator: Generator) -> None:
        """Refuse to train a model on what another encoder made, or on another resolution.

        Raises:
            UserError: The autoencoder, its scaling, the resolution or, where embeddings are kept, the text encoders
                differ; or a text encoder trains, whose embeddings cannot be kept.
        """
        if self.manifest.with_text and generator.trains_text:
            raise UserError(
                f"{self.folder} keeps embeddings, and this run trains a text encoder; encode the data again with "
                "with_text=False, or do not train it"
            )
        ours = identify(generator, with_text=self.manifest.with_text)
        check_identity(self.manifest, self.folder, ours, generator.image_size)

    def validate(self) -> None:
        """Read every file and compare its hash.

        Raises:
            UserError: The first file that was altered.
        """
        for name, record in self.manifest.shards.items():
            path = self.folder / name
            if not has_size(path, record) or file_sha256(path) != record.sha256:
                raise _altered(path)

    def _shard(self, number: int) -> _Shard:
        if number not in self._open:
            self._open[number] = _Shard(self.folder / shard_name(number))
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


class _Shard:
    """One mapped file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: Any = safe_open(path, framework="pt")
            self._names = set(self._file.keys())
            self.prompts: list[str] = json.loads(bytes(self._file.get_tensor("prompts").numpy()))
            self.bucket: Int64[Tensor, " n"] = self._file.get_tensor("bucket").long()
        except (OSError, ValueError, SafetensorError) as error:
            raise _altered(path) from error

    def sample(self, row: int) -> EncodedSample:
        """One row of this file."""
        number = int(self.bucket[row])
        place = int((self.bucket[:row] == number).sum())  # among those of its bucket
        mean, std = self._row(f"mean.{number}", place), self._row(f"std.{number}", place)
        assert mean is not None and std is not None
        embeds, pooled, time_ids = (self._row(name, row) for name in ("embeds", "pooled", "time_ids"))
        return EncodedSample(self.prompts[row], mean, std, embeds, pooled, time_ids)

    def _row(self, name: str, row: int) -> Tensor | None:
        if name not in self._names:
            return None
        try:
            # a copy, so that no tensor points into a file that may be closed
            return self._file.get_slice(name)[row : row + 1][0].to(torch.float32, copy=True)
        except (OSError, SafetensorError) as error:
            raise _altered(self._path) from error


def shard_captions(path: Path) -> list[str]:
    """The captions of one file of a cache.

    Raises:
        UserError: It cannot be read.
    """
    return _Shard(path).prompts


def has_size(path: Path, record: ShardRecord) -> bool:
    """Whether a file is there with the size that it was written with."""
    return path.is_file() and path.stat().st_size == record.num_bytes


def _altered(path: Path) -> UserError:
    return UserError(
        f"{path} is missing, cut short or altered; remove it and encode the same data into its folder again, which "
        "makes this file alone"
    )


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present and len(present) == len(tensors) else None
