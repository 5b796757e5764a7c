"""Randomness without state: every draw is a function of (seed, step, sample index, purpose).

Nothing here remembers anything between calls. A sample therefore gets the same noise whatever the batch size,
the number of processes or the point at which a run was resumed, and two calls that should share noise share
it by using the same key and purpose.

Integers and fractions come straight from a 64-bit hash. Noise comes from torch's generator, whose stream
depends on the lower 32 bits of its seed only: among n samples about n**2 / 2**33 pairs share their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unifl.errors import UserError


@dataclass(frozen=True)
class Key:
    """The address of the draws of one micro-batch.

    Attributes:
        seed: Seed of the run.
        step: Training step (or any counter that should change the draws).
        indices: Global index of each sample of the micro-batch. Global means: counted over all processes and
            all accumulated micro-batches, so that it does not depend on how a batch is cut up.
    """

    seed: int
    step: int
    indices: tuple[int, ...]

    def __len__(self) -> int:
        """Number of samples b."""
        return len(self.indices)

    def normal(
        self,
        purpose: str,
        shape: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b *shape"]:
        """Standard normal noise, one independent stream per sample.

        The numbers are always drawn on the CPU in float32 and then moved, so that they are equal on every
        device and in every precision up to rounding.

        Args:
            purpose: What the noise is for; other words give other noise.
            shape: Shape of one sample.
            device: Where the result lives.
            dtype: Type of the result.

        Returns:
            Noise of shape `(len(indices), *shape)`.
        """
        draws = torch.empty((len(self.indices), *shape))
        for row, index in enumerate(self.indices):
            generator = torch.Generator().manual_seed(_hash("normal", self.seed, self.step, index, purpose))
            draws[row] = torch.randn(tuple(shape), generator=generator)
        return draws.to(device=device, dtype=dtype)

    def integers(self, purpose: str, low: int, high: int) -> Int64[Tensor, " b"]:
        """One integer per sample, uniform over low, ..., high - 1.

        Raises:
            UserError: The range is empty.
        """
        _check_range(purpose, low, high)
        draws = [_hash("integers", self.seed, self.step, index, purpose) for index in self.indices]
        return torch.tensor([low + draw % (high - low) for draw in draws], dtype=torch.int64)

    def uniform(self, purpose: str) -> Float[Tensor, " b"]:
        """One number per sample, uniform over [0, 1), a multiple of 2**-24."""
        draws = [_hash("uniform", self.seed, self.step, index, purpose) for index in self.indices]
        return torch.tensor([_fraction(draw) for draw in draws], dtype=torch.float32)

    def shared_integer(self, purpose: str, low: int, high: int) -> int:
        """One integer for all samples of the step, uniform over low, ..., high - 1.

        It does not depend on `indices`: every process and every micro-batch of the step sees the same value.

        Raises:
            UserError: The range is empty.
        """
        _check_range(purpose, low, high)
        return low + _hash("shared_integer", self.seed, self.step, "all", purpose) % (high - low)

    def shared_uniform(self, purpose: str) -> float:
        """One number for all samples of the step, uniform over [0, 1), a multiple of 2**-24."""
        return _fraction(_hash("shared_uniform", self.seed, self.step, "all", purpose))


def row_order(n_rows: int, seed: int, purpose: str, index: int) -> int:
    """Which row of a data set global sample `index` reads, in shuffled epochs.

    Sample g reads row permutation_{e}(g mod n) with e = g // n, so every row is read once per epoch.

    Args:
        n_rows: Number of rows n, at least 1.
        seed: Seed of the run.
        purpose: Name of the source; two sources of one run are shuffled differently.
        index: Global sample index g, counted from the start of the run.

    Returns:
        A row in 0, ..., n - 1.

    Raises:
        UserError: There are no rows.
    """
    if n_rows < 1:
        raise UserError(f"no rows to draw from for {purpose!r}; check that its data is not empty")
    return _permutation(n_rows, seed, purpose, index // n_rows)[index % n_rows]


def permutation(n_rows: int, seed: int, purpose: str, epoch: int = 0) -> Int64[Tensor, " n_rows"]:
    """All rows 0, ..., n_rows - 1 in a random order that depends on every argument."""
    generator = torch.Generator().manual_seed(_hash("rows", seed, epoch, n_rows, purpose))
    return torch.randperm(n_rows, generator=generator)


@lru_cache(maxsize=16)
def _permutation(n_rows: int, seed: int, purpose: str, epoch: int) -> tuple[int, ...]:
    return tuple(permutation(n_rows, seed, purpose, epoch).tolist())


def _hash(kind: str, seed: int, step: int, index: int | str, purpose: str) -> int:
    """63 bits that depend on every argument (63, because torch seeds are signed)."""
    text = f"{kind}\0{seed}\0{step}\0{index}\0{purpose}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _fraction(draw: int) -> float:
    """Upper 24 of 63 bits as a fraction: exact in float32, so that it never rounds up to 1."""
    return (draw >> 39) / 2**24


def _check_range(purpose: str, low: int, high: int) -> None:
    if high <= low:
        raise UserError(
            f"empty range [{low}, {high}) for {purpose!r}; the upper end must exceed the lower one"
        )
