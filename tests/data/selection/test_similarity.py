from __future__ import annotations

import math

import pytest
import torch

from unifl.data.selection import similarity
from unifl.data.selection.similarity import (
    average_nearest_similarity,
    nearest_neighbours,
    scale_to_length_one,
)
from unifl.errors import UserError


def test_closed_forms():
    assert average_nearest_similarity(torch.eye(5)).ans == 0
    assert average_nearest_similarity(torch.ones(7, 4) / 2).ans == 1
    # regular polygon: the nearest of n directions in the plane is 2 pi / n away
    angles = torch.arange(12) * 2 * math.pi / 12
    polygon = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert average_nearest_similarity(polygon).ans == pytest.approx(math.cos(2 * math.pi / 12), abs=1e-6)
    # two pairs at 60 degrees and one row orthogonal to all: (4 * 0.5 + 0) / 5
    pair = torch.tensor([[1, 0, 0, 0, 0], [0.5, 3**0.5 / 2, 0, 0, 0]])
    rows = torch.cat([pair, pair.roll(2, dims=1), torch.tensor([[0.0, 0, 0, 0, 1]])])
    assert average_nearest_similarity(rows).ans == pytest.approx(0.4, abs=1e-6)


def test_one_prompt_has_no_neighbour():
    alone = average_nearest_similarity(torch.eye(1))
    assert math.isnan(alone.ans) and alone.total == 1 and len(alone.nearest) == 0


def test_neighbours_equal_brute_force_across_blocks(monkeypatch):
    rows = torch.randn(97, 5, generator=torch.Generator().manual_seed(0))
    scale_to_length_one(rows)
    cosines = (rows @ rows.T).fill_diagonal_(-math.inf)
    monkeypatch.setattr(similarity, "_ROWS", 10)
    monkeypatch.setattr(similarity, "_COLUMNS", 7)
    asked = torch.tensor([96, 3, 3, 50, *range(20)])
    found, neighbour = nearest_neighbours(rows, asked)
    torch.testing.assert_close(found, cosines[asked].amax(dim=1))
    assert neighbour.equal(cosines[asked].argmax(dim=1))


def test_a_sample_estimates_the_whole():
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(1))
    scale_to_length_one(rows)
    whole = average_nearest_similarity(rows)
    assert whole.exact and whole.low == whole.ans == whole.high
    inside = []
    for seed in range(40):
        part = average_nearest_similarity(rows, sample=300, seed=seed)
        assert not part.exact and len(part.nearest) == 300
        inside.append(part.low <= whole.ans <= part.high)
    assert 0.8 <= sum(inside) / 40  # 95 % are expected; the neighbours are sought among all rows


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_rows_without_a_direction_are_named(bad):
    rows = torch.ones(6, 3)
    rows[4] = bad
    with pytest.raises(UserError, match="1 of 6 embeddings are zero or not finite, the first in row 4"):
        scale_to_length_one(rows)


def test_neighbours_are_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    rows = torch.randn(800, 24, generator=torch.Generator().manual_seed(2))
    scale_to_length_one(rows)
    index = faiss.IndexFlatIP(24)
    index.add(rows.numpy())
    cosines, places = index.search(rows.numpy(), 2)  # the first is the row itself
    found, neighbour = nearest_neighbours(rows, torch.arange(800))
    torch.testing.assert_close(found, torch.from_numpy(cosines[:, 1]), atol=1e-6, rtol=0)
    assert neighbour.equal(torch.from_numpy(places[:, 1]))
