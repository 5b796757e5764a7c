"""Which rows a process sees at a step, and the keys of their draws."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from unifl.data.batch import Sample, collate
from unifl.data.encoded import EncodedSample, collate_encoded
from unifl.data.reading import Reading
from unifl.errors import UserError
from unifl.methods.base import Method, MicroBatch, Source
from unifl.randomness import Key, row_order


@dataclass(frozen=True)
class Layout:
    """How the global batch of a training step is cut up.

    Row `position` of step `step` (both from 0) has the global sample index step * global_batch + position.
    Positions are dealt out contiguously, first over processes, then over the micro-batches of each, so that
    8 rows at once, 8 micro-batches of one row and 2 processes of 4 rows see the same rows with the same noise.

    Attributes:
        micro_batch: Rows per micro-batch.
        accumulation: Micro-batches per process and update.
        processes: Number of processes.
        process: Rank of this one.
    """

    micro_batch: int
    accumulation: int
    processes: int = 1
    process: int = 0

    @property
    def global_batch(self) -> int:
        """Rows of one training step over all processes."""
        return self.micro_batch * self.accumulation * self.processes

    def indices(self, step: int, micro: int) -> tuple[int, ...]:
        """Global sample indices of one micro-batch of this process."""
        start = step * self.global_batch + (self.process * self.accumulation + micro) * self.micro_batch
        return tuple(range(start, start + self.micro_batch))


def draw_micro_batches(method: Method, layout: Layout, *, seed: int, step: int) -> list[MicroBatch]:
    """The micro-batches of this process at one step, with their rows loaded.

    Args:
        method: Whose sources are read.
        layout: How the global batch is cut up.
        seed: Seed of the run.
        step: Training step, from 0.
    """
    batches = []
    for micro in range(layout.accumulation):
        key = Key(seed, step, layout.indices(step, micro))
        batches.append(MicroBatch(key=key, data=_rows(method.sources, key)))
    return batches


def check_sources(sources: Mapping[str, Source]) -> None:
    """Check that every source has rows.

    Raises:
        UserError: One is empty.
    """
    for name, source in sources.items():
        if len(source) == 0:
            raise UserError(f"the data source {name!r} is empty; check its file or folder")


def seed_stray_draws(key: Key, update: str) -> None:
    """Seed the global generators of torch, numpy and Python for one micro-batch of one update.

    Nothing in the package draws from them, but dropout and a user's own reward may. Seeded from the key, such
    draws survive a resume; only they depend on how the batch is cut up.
    """
    text = f"stray\0{key.seed}\0{key.step}\0{key.indices[0]}\0{update}"
    seed = int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _rows(sources: Mapping[str, Source], key: Key) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, source in sources.items():
        rows = [source[_row(source, key.seed, name, index)] for index in key.indices]
        if isinstance(rows[0], Sample):
            data[name] = collate(rows)
        else:
            data[name] = collate_encoded(rows) if isinstance(rows[0], EncodedSample) else rows
        if isinstance(source, Reading) and not isinstance(data[name], list):
            data[name] = source.with_dropout(data[name], key)
    return data


def _row(source: Source, seed: int, name: str, index: int) -> int:
    """Row of a global sample index: in an order of the source's own where it has one, else in shuffled epochs."""
    if isinstance(source, Reading):
        return source.row(index)
    return row_order(len(source), seed, f"rows/{name}", index)
