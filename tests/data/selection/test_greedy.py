from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unifl.data.selection import greedy
from unifl.data.selection.greedy import compress_exactly
from unifl.data.selection.similarity import scale_to_length_one

TOLERANCE = 1e-6  # of cosines whose products are summed in another order


def _clustered(number, width, seed, num_clusters=8, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_clusters, width, generator=generator)
    chosen = torch.randint(num_clusters, (number,), generator=generator)
    rows = centres[chosen] + spread * torch.randn(number, width, generator=generator)
    scale_to_length_one(rows)
    return rows


def _brute_force(rows, threshold):
    kept = []
    for index in range(len(rows)):
        if all(float(rows[index] @ rows[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


@given(st.integers(1, 120), st.integers(2, 8), st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 0.8, 0.95]))
def test_kept_rows_are_apart_and_removed_ones_have_a_kept_neighbour_before_them(
    number, width, seed, threshold
):
    rows = _clustered(number, width, seed)
    kept = compress_exactly(rows, threshold)
    cosines = (rows @ rows.T).fill_diagonal_(-1)
    assert len(kept) and (cosines[kept][:, kept] <= threshold + TOLERANCE).all()
    for row in sorted(set(range(number)) - set(kept.tolist())):
        before = kept[kept < row]
        assert cosines[row, before].max() > threshold - TOLERANCE


def test_blocks_and_chunks_change_nothing(monkeypatch):
    rows = _clustered(600, 6, 1, num_clusters=40)
    expected = _brute_force(rows, 0.8)
    assert 20 < len(expected) < 580
    assert compress_exactly(rows, 0.8).tolist() == expected
    monkeypatch.setattr(greedy, "_BLOCK", 17)
    monkeypatch.setattr(greedy, "_CHUNK", 5)
    assert compress_exactly(rows, 0.8).tolist() == expected


def test_a_cluster_of_any_size_leaves_one():
    # with k nearest neighbours for a small k some of these would survive
    rows = _clustered(3000, 16, 3, num_clusters=1, spread=0.01)
    assert compress_exactly(rows, 0.8).tolist() == [0]


def test_a_threshold_of_one_keeps_all_but_nothing_is_lost_at_equal_rows():
    rows = torch.eye(4).repeat(2, 1)
    assert compress_exactly(rows, 1.0).tolist() == list(range(8))  # a cosine of 1 is not above 1
    assert compress_exactly(rows, 0.99).tolist() == [0, 1, 2, 3]


def test_progress_ends_at_the_end():
    seen = []
    compress_exactly(_clustered(2500, 4, 0), 0.8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1024, 2500), (2048, 2500), (2500, 2500)]


def _algorithm_2(rows, threshold, k):
    """Algorithm 2 of UniFL, line by line, with the neighbours from faiss and the permutation 0, 1, 2, ..."""
    index = pytest.importorskip("faiss").IndexFlatIP(rows.shape[1])
    index.add(rows.numpy())
    similarities, neighbours = index.search(rows.numpy(), k)
    removed, kept = [False] * len(rows), []
    for i in range(len(rows)):
        if not removed[i] and i not in kept:
            kept.append(i)
            for similarity, j in zip(similarities[i], neighbours[i], strict=True):
                if similarity > threshold:
                    removed[j] = True
    return kept


def test_equals_algorithm_2_with_all_neighbours():
    rows = _clustered(500, 6, 5, num_clusters=40)
    assert compress_exactly(rows, 0.8).tolist() == _algorithm_2(rows, 0.8, k=500)


def test_few_neighbours_leave_pairs_above_the_threshold():
    rows = _clustered(500, 6, 5, num_clusters=4, spread=0.05)
    kept = _algorithm_2(rows, 0.8, k=8)
    assert len(kept) > 3 * len(compress_exactly(rows, 0.8))
    assert (rows[kept] @ rows[kept].T).fill_diagonal_(-1).max() > 0.8
