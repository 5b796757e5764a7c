"""Comparisons that add up to an order: rankings, best first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from unifl.data.preferences.index import PreferenceIndex


@dataclass(frozen=True)
class RankedPictures:
    """One ranking.

    Attributes:
        prompt: What all pictures show.
        pictures: Numbers in the index's `pictures`, the best first; at least two.
    """

    prompt: str
    pictures: tuple[int, ...]


def rankings(index: PreferenceIndex, rows: Sequence[int]) -> list[RankedPictures]:
    """Rankings of the pictures of each prompt (and axis), as far as the comparisons fix them.

    Where the comparisons of a prompt leave exactly one order of all its compared pictures, that order is one ranking.
    Where they contradict each other or leave an order open, each stays a ranking of two. Ties are left out.

    Args:
        index: Comparisons.
        rows: Which of them.
    """
    groups = index.groups()
    by_group: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if not index.tie[row]:
            by_group[int(groups[row])].append(row)
    found = []
    for members in by_group.values():
        prompt = index.prompts.at(members[0]) or ""
        pairs = [(int(index.win[row]), int(index.lose[row])) for row in members]
        order = only_order(pairs)
        chosen = [order] if order is not None else pairs
        found += [RankedPictures(prompt, tuple(one)) for one in chosen]
    return found


def only_order(pairs: Sequence[tuple[int, int]]) -> tuple[int, ...] | None:
    """The single order in which every pair's first comes before its second, or None where there is none or another."""
    below: dict[int, set[int]] = {}
    for better, worse in pairs:
        below.setdefault(better, set()).add(worse)
        below.setdefault(worse, set())
    above = {item: sum(item in others for others in below.values()) for item in below}
    order: list[int] = []
    free = [item for item, count in above.items() if count == 0]
    while len(free) == 1:
        item = free.pop()
        order.append(item)
        for worse in below[item]:
            above[worse] -= 1
            if above[worse] == 0:
                free.append(worse)
    return tuple(order) if len(order) == len(below) else None
