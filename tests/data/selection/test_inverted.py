from __future__ import annotations

import importlib.util

import pytest
import torch

from unifl.data.selection import inverted
from unifl.data.selection.greedy import compress_exactly
from unifl.data.selection.inverted import InvertedFile, compress_approximately
from unifl.data.selection.similarity import nearest_neighbours, scale_to_length_one
from unifl.errors import UserError


@pytest.fixture(scope="module")
def families():
    """20,000 rows in families of near-duplicates whose cosines lie on both sides of the threshold."""
    generator = torch.Generator().manual_seed(0)
    ideas = torch.randn(4000, 64, generator=generator)
    scale_to_length_one(ideas)
    member = torch.randint(4000, (20_000,), generator=generator)
    lengths = 0.1 + 0.8 * torch.rand(20_000, 1, generator=generator)
    rows = ideas[member] + lengths * torch.randn(20_000, 64, generator=generator) / 8
    scale_to_length_one(rows)
    return rows


@pytest.fixture
def _faiss():
    pytest.importorskip("faiss")


@pytest.mark.usefixtures("_faiss")
def test_almost_no_kept_row_has_a_neighbour_above_the_threshold(families):
    kept, check = compress_approximately(families, 0.8, seed=0)
    similarity, _ = nearest_neighbours(families[kept], torch.arange(len(kept)))
    assert (similarity > 0.8).float().mean() <= 1e-3
    assert check.above <= 5e-4 * check.checked
    exact = compress_exactly(families, 0.8)
    assert 4000 < len(exact) < 16_000
    assert len(kept) == pytest.approx(len(exact), rel=0.01)
    assert compress_approximately(families, 0.8, seed=0)[0].equal(kept)


@pytest.mark.usefixtures("_faiss")
def test_too_few_cells_are_repaired_by_further_passes(families, monkeypatch):
    families = families[:8000]
    monkeypatch.setattr(inverted, "_BLOCK", 512)  # little is compared exactly, so that the cells matter
    monkeypatch.setattr(inverted, "_PROBES", 1)
    monkeypatch.setattr(inverted, "_MAX_PASSES", 1)
    one = compress_approximately(families, 0.8, seed=0)[1]
    assert one.above > 1e-3 * one.checked
    monkeypatch.setattr(inverted, "_MAX_PASSES", 8)
    kept, check = compress_approximately(families, 0.8, seed=0)
    assert check.passes > 1
    similarity, _ = nearest_neighbours(families[kept], torch.arange(len(kept)))
    assert (similarity > 0.8).float().mean() <= 1e-3


@pytest.mark.usefixtures("_faiss")
def test_all_cells_searched_is_the_exact_pass(families, monkeypatch):
    monkeypatch.setattr(inverted, "_BLOCK", 300)
    monkeypatch.setattr(inverted, "_PROBES", 10**6)
    rows = families[:3000]
    kept, check = compress_approximately(rows, 0.8)
    assert kept.equal(compress_exactly(rows, 0.8))
    assert (check.above, check.passes) == (0, 1)


@pytest.mark.usefixtures("_faiss")
def test_only_filed_rows_are_found(families):
    rows = torch.cat([families[:200], families[:200]])
    filed = InvertedFile(rows, probes=4, seed=0)
    assert not filed.has_neighbour(torch.arange(200), 0.9).any()
    filed.add(torch.arange(50))
    found = filed.has_neighbour(torch.arange(200, 400), 0.99)
    assert found[:50].all() and not found[50:].any()


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"needs faiss.*pip install faiss-cpu, or take the mode 'exact'"):
        compress_approximately(torch.eye(3), 0.8)
