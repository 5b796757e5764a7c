"""Nearest-neighbour compression of millions: the same greedy pass, with neighbours sought in an inverted file.

Exact comparison of a million prompts takes 1e12 inner products. Here k-means (faiss) cuts the space into cells, a kept
prompt is filed under its cell, and a new one is compared with those filed under the cells nearest to it. Prompts of one
block are compared with each other exactly. A neighbour is overlooked when its cell was not searched; therefore a
sample of the result is checked exactly against all of it, and the pass is repeated over the result, with other cells
and twice as many of them searched, until few enough are found.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unifl.data.selection.greedy import Progress, compress_exactly
from unifl.data.selection.similarity import nearest_neighbours
from unifl.errors import UserError
from unifl.randomness import permutation

_BLOCK = 16_384
_FIRST_PROBES = 4  # most neighbours are in the nearest cells; the others are searched only for what is left
_PROBES = 32
_MAX_PASSES = 4
_CHECKED = 10_000
_TOLERATED = 5e-4  # half of the 0.1 % that is promised, because a sample of 10,000 decides


@dataclass(frozen=True)
class Check:
    """What an exact comparison of kept prompts with all kept prompts found, after the last pass.

    Attributes:
        checked: Prompts drawn at random from the kept ones.
        above: How many of them had a neighbour above the threshold; one of each such pair was dropped afterwards.
        passes: Passes that were made.
        probes: Cells searched per prompt in the last pass.
    """

    checked: int
    above: int
    passes: int
    probes: int


def require_faiss() -> None:
    """See that faiss is installed.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec("faiss") is None:
        raise UserError(
            "approximate compression needs faiss, which is not installed; pip install faiss-cpu, or take the "
            "mode 'exact' (the time grows with the square of the number of prompts)"
        )


def compress_approximately(
    embeddings: Float[Tensor, "n d"],
    threshold: float,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Int64[Tensor, " k"], Check]:
    """The rows that a greedy pass keeps, where few kept ones may still have a kept neighbour above the threshold.

    Args:
        embeddings: Of length 1, already in the order of the pass, on the CPU.
        threshold: tau_2.
        seed: Of k-means and of the rows that are checked.
        progress: Called with (rows decided, n) after each block, from the start for every pass.

    Returns:
        Kept rows, ascending, and what the check found.

    Raises:
        UserError: faiss is not installed.
    """
    require_faiss()
    kept, rows, probes = torch.arange(len(embeddings)), embeddings, _PROBES
    for number in range(1, _MAX_PASSES + 1):
        stays = _one_pass(rows, threshold, seed=seed + number, probes=probes, progress=progress)
        kept, rows = kept[stays], rows[stays]
        stays, above, checked = _check(rows, threshold, seed=seed + number)
        kept = kept[stays]
        check = Check(checked, above, number, probes)
        if above <= _TOLERATED * checked:
            break
        rows, probes = rows[stays], 2 * probes
    return kept, check


class InvertedFile:
    """Kept rows under the cell that is nearest to each of them."""

    def __init__(self, embeddings: Float[Tensor, "n d"], *, probes: int, seed: int) -> None:
        """Finds cells for some rows, with nothing filed yet.

        Args:
            embeddings: Of length 1; rows are named by their place in it.
            probes: Cells that are searched for each row.
            seed: Of k-means.
        """
        import faiss

        self._embeddings = embeddings
        num_rows, width = embeddings.shape
        num_cells = max(1, min(int(2 * num_rows**0.5), num_rows))
        means = faiss.Kmeans(
            width,
            num_cells,
            niter=8,
            seed=seed % 2**31,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=48,
        )
        points = embeddings.numpy()
        means.train(points)
        index = faiss.IndexFlatIP(width)
        assert means.centroids is not None
        index.add(means.centroids)
        nearest = index.search(points, min(probes, num_cells))[1]
        self._cells = torch.from_numpy(nearest).to(torch.int32)  # (n, probes), the nearest first
        self._filed = [torch.empty(0, dtype=torch.int64) for _ in range(num_cells)]

    def add(self, rows: Int64[Tensor, " b"]) -> None:
        """File rows."""
        cells, order = self._cells[rows, 0].sort(stable=True)
        for cell, members in _runs(cells, rows[order]):
            self._filed[cell] = torch.cat([self._filed[cell], members])

    def has_neighbour(self, rows: Int64[Tensor, " b"], threshold: float) -> Bool[Tensor, " b"]:
        """Whether a filed row, in the cells searched, is more similar than the threshold."""
        queries, cells = self._embeddings[rows], self._cells[rows]
        found = self._search(queries, cells[:, :_FIRST_PROBES], threshold)
        rest = (~found).nonzero().squeeze(1)
        found[rest] = self._search(queries[rest], cells[rest, _FIRST_PROBES:], threshold)
        return found

    def _search(self, queries: Float[Tensor, "b d"], cells: Tensor, threshold: float) -> Bool[Tensor, " b"]:
        # cell by cell: one matrix product of all that look into it with all that are filed there
        found = torch.zeros(len(queries), dtype=torch.bool)
        ordered, order = cells.flatten().sort(stable=True)
        asking = order // max(cells.shape[1], 1)
        for cell, askers in _runs(ordered, asking):
            askers = askers[~found[askers]]
            if len(self._filed[cell]) and len(askers):
                cosines = queries[askers] @ self._embeddings[self._filed[cell]].T
                found[askers[cosines.amax(dim=1) > threshold]] = True
        return found


def _runs(keys: Tensor, values: Tensor) -> list[tuple[int, Tensor]]:
    """Values by key, where equal keys stand together."""
    names, counts = keys.unique_consecutive(return_counts=True)
    return list(zip(names.tolist(), values.split(counts.tolist()), strict=True))


def _one_pass(
    embeddings: Float[Tensor, "n d"], threshold: float, *, seed: int, probes: int, progress: Progress | None
) -> Int64[Tensor, " k"]:
    filed = InvertedFile(embeddings, probes=probes, seed=seed)
    chosen: list[Tensor] = []
    for rows in torch.arange(len(embeddings)).split(_BLOCK):
        rows = rows[~filed.has_neighbour(rows, threshold)]
        rows = rows[compress_exactly(embeddings[rows], threshold)]
        filed.add(rows)
        chosen.append(rows)
        if progress is not None:
            progress(min(len(chosen) * _BLOCK, len(embeddings)), len(embeddings))
    return torch.cat(chosen)


def _check(
    embeddings: Float[Tensor, "k d"], threshold: float, *, seed: int
) -> tuple[Bool[Tensor, " k"], int, int]:
    """Compares a sample of rows with all of them; the later one of each pair above the threshold is to go.

    Returns:
        Which rows stay, how many of the sample had such a neighbour, and the size of the sample.
    """
    sample = permutation(len(embeddings), seed, "check")[:_CHECKED]
    similarity, neighbour = nearest_neighbours(embeddings, sample)
    above = similarity > threshold
    stays = torch.ones(len(embeddings), dtype=torch.bool)
    stays[torch.maximum(sample, neighbour)[above]] = False
    return stays, int(above.sum()), len(sample)
