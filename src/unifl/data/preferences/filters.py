"""Which comparisons to learn from.

A picture that wins in one comparison and loses in another pulls both ways, and most of what it teaches cancels. The
paper on noise-conditioned perception therefore keeps absolute winners alone (Gambashidze et al., arXiv 2406.17636,
section 5): of Pick-a-Pic v2's 851,293 pairs, 87,687 are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from unifl.data.preferences.index import PreferenceIndex
from unifl.errors import UserError

Ties = Literal["drop", "keep"]


@dataclass(kw_only=True)
class Filters:
    """What is kept, in this order: absolute winners, strong preferences, latest losers."""

    absolute_winners: bool = False
    """Keep comparisons whose winner neither lost nor drew in any comparison of its prompt and axis."""
    min_wins: int = 0
    """With `absolute_winners`: and won more than so many."""
    min_strength: float = 0.0
    """Keep comparisons of at least this strength, in [0, 1]; it leaves ties alone."""
    latest_losers: bool = False
    """Keep the latest comparison of every winner, by ranking_id or row."""

    def __post_init__(self) -> None:
        if self.min_wins < 0:
            raise UserError(f"min_wins is {self.min_wins}; it must be at least 0")
        if self.min_wins and not self.absolute_winners:
            raise UserError("min_wins counts the wins of absolute winners; set absolute_winners too")
        if not 0 <= self.min_strength <= 1:
            raise UserError(f"min_strength is {self.min_strength}; it must be in [0, 1]")


@dataclass(frozen=True)
class Step:
    """What one step of a selection left."""

    name: str
    kept: int


def select(
    index: PreferenceIndex, filters: Filters, *, ties: Ties = "drop", allow_duplicates: bool = True
) -> tuple[PreferenceIndex, list[Step]]:
    """Duplicates go first, then filters in the order of `Filters`, then ties.

    Ties are dropped last because a draw says that its pictures are no absolute winners.

    Args:
        index: All comparisons of a data set.
        filters: Which to keep.
        ties: Whether comparisons that nobody won stay.
        allow_duplicates: Whether a row that says exactly what another says stays.

    Returns:
        What is left, and how much each step left.

    Raises:
        UserError: See `absolute_winners`.
    """
    steps = [Step("labelled", len(index))]
    for name, mask in _masks(index, filters, ties, allow_duplicates):
        index = index.take(mask(index))
        steps.append(Step(name, len(index)))
    return index, steps


def _masks(index: PreferenceIndex, filters: Filters, ties: Ties, allow_duplicates: bool) -> Iterator:
    if not allow_duplicates:
        yield "without duplicates", lambda found: ~duplicates(found)
    if filters.absolute_winners:
        yield "absolute winners", lambda found: absolute_winners(found, min_wins=filters.min_wins)
    if filters.min_strength > 0:
        yield "strong enough", lambda found: found.tie | (found.strength >= filters.min_strength)
    if filters.latest_losers:
        yield "latest losers", latest_losers
    if ties == "drop":
        yield "without ties", lambda found: ~found.tie


def duplicates(index: PreferenceIndex) -> Bool[np.ndarray, " n"]:
    """Rows that say exactly what an earlier row says: the same winner, loser, prompt, axis, strength and user.

    Where rows have a ranking_id, that is the same too. Which of two pictures was shown first does not count.
    """
    low, high = np.minimum(index.win, index.lose), np.maximum(index.win, index.lose)
    won = np.where(index.tie, -1, index.win)
    strength = index.strength.view(np.int32).astype(np.int64)
    order = index.order if index.dated else np.zeros(len(index), np.int64)
    columns = (index.groups(), low, high, won, index.users.codes, strength, order)
    by = np.lexsort((np.arange(len(index)), *columns))
    same = np.ones(max(len(index) - 1, 0), bool)
    for column in columns:
        same &= column[by][1:] == column[by][:-1]
    found = np.zeros(len(index), bool)
    found[by[1:][same]] = True
    return found


def absolute_winners(index: PreferenceIndex, *, min_wins: int = 0) -> Bool[np.ndarray, " n"]:
    """Comparisons whose winner has no loss and no draw, and more than `min_wins` wins, for its prompt and axis.

    Raises:
        UserError: Pictures have neither names nor uids, so that nobody knows which comparisons one is in.
    """
    require_known(index)
    counts = count_outcomes(index)
    absolute = (counts.losses == 0) & (counts.draws == 0) & (counts.wins > min_wins)
    return ~index.tie & absolute[counts.winner]


def latest_losers(index: PreferenceIndex) -> Bool[np.ndarray, " n"]:
    """The latest comparison of every winner; ties stay.

    Raises:
        UserError: See `absolute_winners`.
    """
    require_known(index)
    kept = index.tie.copy()
    rows = np.flatnonzero(~index.tie)
    winner = shown_keys(index, index.win)[rows]
    by = np.lexsort((rows, index.order[rows], winner))
    last = np.ones(len(rows), bool)
    last[:-1] = winner[by][1:] != winner[by][:-1]
    kept[rows[by[last]]] = True
    return kept


@dataclass(frozen=True)
class Outcomes:
    """What pictures went through, by picture and group.

    Attributes:
        wins: Comparisons that each won.
        losses: That each lost.
        draws: That nobody won.
        winner: Which of these the winner of each row is.
        loser: Which of these the loser is.
    """

    wins: Int64[np.ndarray, " s"]
    losses: Int64[np.ndarray, " s"]
    draws: Int64[np.ndarray, " s"]
    winner: Int64[np.ndarray, " n"]
    loser: Int64[np.ndarray, " n"]


def count_outcomes(index: PreferenceIndex) -> Outcomes:
    """Wins, losses and draws of every picture in every group."""
    keys = np.concatenate([shown_keys(index, index.win), shown_keys(index, index.lose)])
    found, codes = np.unique(keys, return_inverse=True)
    winner, loser = np.split(codes, 2)
    number = len(found)
    return Outcomes(
        np.bincount(winner[~index.tie], minlength=number),
        np.bincount(loser[~index.tie], minlength=number),
        np.bincount(np.concatenate([winner[index.tie], loser[index.tie]]), minlength=number),
        winner,
        loser,
    )


def shown_keys(index: PreferenceIndex, pictures: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """One number per picture and group."""
    return index.groups() * max(len(index.pictures), 1) + pictures


def require_known(index: PreferenceIndex) -> None:
    """Refuse data in which a picture of two rows cannot be told from two pictures.

    Raises:
        UserError: With what is needed.
    """
    if not index.pictures.known:
        raise UserError(
            f"pictures of {index.shown} have neither names nor uids, so nobody can say in which rows one wins or "
            "loses; add image_0_uid and image_1_uid, or do without this filter"
        )
