"""Numbers over all pairs do not hold all pairs at once, and do not depend on how they are cut into blocks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from unifl.metrics import blocks, cmmd, cmmd_interval, kernel_distance, kernel_replicates, prdc
from unifl.metrics.blocks import row_blocks
from unifl.metrics.intervals import bootstrap_counts

MEASURES = {
    "kernel_distance": lambda x, y: [kernel_distance(x, y)],
    "kernel_replicates": lambda x, y: kernel_replicates(x, y, bootstrap_counts(len(x), resamples=7)),
    "cmmd": lambda x, y: [cmmd(x, y), *vars(cmmd_interval(x, y)).values()],
    "prdc": lambda x, y: list(vars(prdc(x, y)).values()),
}


def test_blocks_are_all_rows_in_order(monkeypatch):
    assert list(row_blocks(5, 10)) == [slice(0, 5)]
    monkeypatch.setattr(blocks, "_NUMBERS", 20)
    assert list(row_blocks(5, 10)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(row_blocks(2, 100)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
@pytest.mark.parametrize("numbers", [1, 40, 333])
def test_numbers_do_not_depend_on_the_blocks(monkeypatch, measure, numbers):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(37, 5)), rng.normal(size=(23, 5)) + 0.3
    whole = measure(x, y)
    monkeypatch.setattr(blocks, "_NUMBERS", numbers)
    np.testing.assert_allclose(measure(x, y), whole, rtol=1e-11)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_memory_does_not_grow_with_the_pairs(measure):
    """Numpy tells tracemalloc of every array: what is held at most, whoever made it."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5000, 3)), rng.normal(size=(4500, 3))
    tracemalloc.start()
    try:
        measure(x, y)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert most < 0.75 * len(x) * len(y) * 8
