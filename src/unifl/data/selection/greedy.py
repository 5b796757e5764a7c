"""Nearest-neighbour compression, exactly: one greedy pass in a given order.

A prompt is kept unless a prompt that was kept before it is more similar than tau_2. That is algorithm 2 of UniFL
(arXiv 2404.05595) with all neighbours in place of the k nearest: with k of them a prompt of a cluster that has more
than k members may survive beside a kept one, with all of them no two kept prompts are ever more similar than tau_2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_BLOCK = 1024  # prompts that are decided together
_CHUNK = 8192  # kept prompts that a block is compared with at once: 32 MiB of similarities

Progress = Callable[[int, int], None]


def compress_exactly(
    embeddings: Float[Tensor, "n d"], threshold: float, *, progress: Progress | None = None
) -> Int64[Tensor, " k"]:
    """The rows that a greedy pass keeps, where the order of the rows is the order of the pass.

    The cost is at most n^2 d flop (all kept), in matrix products of a block with everything kept so far.

    Args:
        embeddings: Of length 1, already in the order of the pass.
        threshold: tau_2: a row whose cosine with a kept one is larger is dropped.
        progress: Called with (rows decided, n) after each block.

    Returns:
        Kept rows, ascending, on the CPU.
    """
    kept = torch.empty_like(embeddings)  # pages of memory are taken only as far as it is filled
    chosen: list[Tensor] = []
    num_kept = 0
    for start in range(0, len(embeddings), _BLOCK):
        block = embeddings[start : start + _BLOCK]
        free = torch.arange(len(block), device=block.device)
        for first in range(0, num_kept, _CHUNK):
            if len(free) == 0:
                break
            chunk = kept[first : min(first + _CHUNK, num_kept)]
            free = free[(block[free] @ chunk.T).amax(dim=1) <= threshold]
        free = free[_greedy_inside(block[free], threshold)]
        kept[num_kept : num_kept + len(free)] = block[free]
        num_kept += len(free)
        chosen.append(free.cpu() + start)
        if progress is not None:
            progress(start + len(block), len(embeddings))
    return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)


def _greedy_inside(block: Float[Tensor, "b d"], threshold: float) -> Int64[Tensor, " k"]:
    """The greedy pass over a few rows, by their matrix of similarities."""
    clash = (block @ block.T > threshold).cpu()
    free = torch.ones(len(block), dtype=torch.bool)
    # only rows that clash with a later one can remove anything
    for row in torch.triu(clash, diagonal=1).any(dim=1).nonzero().squeeze(1).tolist():
        if free[row]:
            free[row + 1 :] &= ~clash[row, row + 1 :]
    return free.nonzero().squeeze(1).to(block.device)
