"""Matrices of all pairs of two sets, block by block: of 30,000 pictures each, such a matrix takes 7 GB."""

from __future__ import annotations

from collections.abc import Iterator

_NUMBERS = 2**22
"""Of a block: 32 MiB of float64."""


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows, in order, with as many rows as a block of so many columns has room for; at least one."""
    step = max(1, _NUMBERS // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
