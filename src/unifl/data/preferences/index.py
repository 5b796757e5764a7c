"""The index of preference data: a few numbers per row, and nothing of the pictures but where they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int8, Int32, Int64

from unifl.data.preferences.places import Places
from unifl.data.preferences.tables import Table, Texts
from unifl.errors import UserError

FIRST, TIE, SECOND, MISSING = 1, 0, -1, 2
"""Outcomes of a comparison: who won, nobody, or not known."""


@dataclass(frozen=True)
class LeftOut:
    """What reading left out of an index.

    Attributes:
        read: Comparisons in the data.
        missing: Without a label.
        identical: Of a picture with itself.
        too_close: Of two scores that differ by less than was asked for.
    """

    read: int
    missing: int = 0
    identical: int = 0
    too_close: int = 0


@dataclass(frozen=True)
class Masks:
    """Where in its pictures a comparison is meant: files of grey values, named in a folder's table.

    Attributes:
        win: Number of the preferred picture's mask in `places`; -1 where there is none.
        lose: The same of the other picture.
        places: The table.
    """

    win: Int64[np.ndarray, " n"]
    lose: Int64[np.ndarray, " n"]
    places: Places


@dataclass(frozen=True)
class PreferenceIndex:
    """Comparisons by row. A million of them take about 60 MB, prompts apart.

    Attributes:
        shown: What errors call the data.
        prompts: Each prompt once, and which of them each row has.
        win: Number of the preferred picture in `pictures`; of a tie, of the first.
        lose: The same of the other one.
        tie: Whether nobody won.
        strength: How clear the preference is, in (0, 1]; 1 for ties.
        order: The later a comparison, the larger: its ranking_id where there is one, otherwise its row.
        dated: Whether `order` comes from a ranking_id.
        row: Row of the data set that it comes from, from 0.
        axes: What was compared; codes are -1 where everything was.
        users: Who compared; codes are -1 where that is not known.
        pictures: Where pictures are.
        left_out: What is not here.
        table: Names the rows of the data set.
        masks: Of the pictures, where there are any.
    """

    shown: str
    prompts: Texts
    win: Int64[np.ndarray, " n"]
    lose: Int64[np.ndarray, " n"]
    tie: Bool[np.ndarray, " n"]
    strength: Float32[np.ndarray, " n"]
    order: Int64[np.ndarray, " n"]
    dated: bool
    row: Int64[np.ndarray, " n"]
    axes: Texts
    users: Texts
    pictures: Places
    left_out: LeftOut
    table: Table
    masks: Masks | None = None

    def __len__(self) -> int:
        """Number of comparisons n."""
        return len(self.row)

    def take(self, rows: Int64[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> PreferenceIndex:
        """The comparisons of some rows, by number or by a mask."""
        masks = self.masks
        if masks is not None:
            masks = Masks(masks.win[rows], masks.lose[rows], masks.places)
        return replace(
            self,
            prompts=self.prompts.take(rows),
            win=self.win[rows],
            lose=self.lose[rows],
            tie=self.tie[rows],
            strength=self.strength[rows],
            order=self.order[rows],
            row=self.row[rows],
            axes=self.axes.take(rows),
            users=self.users.take(rows),
            masks=masks,
        )

    def who(self) -> list[str | None]:
        """Users who compared, each once, and None where some row does not say; no picture is read."""
        codes = np.unique(self.users.codes).tolist()
        return [None if code < 0 else self.users.values[code] for code in codes]

    def name(self, row: int) -> str:
        """What errors call a comparison: its row in the data set."""
        return self.table.place(int(self.row[row]))

    def groups(self) -> Int64[np.ndarray, " n"]:
        """Number of the group of each row: comparisons of one prompt on one axis are about the same question."""
        return self.prompts.codes.astype(np.int64) * (len(self.axes.values) + 1) + self.axes.codes + 1


def make_index(
    table: Table,
    *,
    shown: str,
    prompts: Texts,
    first: Int64[np.ndarray, " n"],
    second: Int64[np.ndarray, " n"],
    outcome: Int8[np.ndarray, " n"],
    pictures: Places,
    rows: Int64[np.ndarray, " n"] | None = None,
    strength: Float64[np.ndarray, " n"] | None = None,
    masks: Masks | None = None,
    too_close: int = 0,
) -> PreferenceIndex:
    """The index of comparisons: unlabelled ones are left out, winners come first.

    Axis, user and ranking_id are taken from the columns `axis`, `user_id` or `user`, and `ranking_id` of the table.

    Args:
        table: The data set.
        shown: What errors call it.
        prompts: Of the comparisons.
        first: First picture of each, -1 where there is none.
        second: Second picture of each.
        outcome: `FIRST`, `SECOND`, `TIE` or `MISSING`.
        pictures: What `first` and `second` are numbers in.
        rows: Row of the table of each comparison; its number by default.
        strength: In [0, 1]; 1 by default.
        masks: Of first and second pictures.
        too_close: Comparisons that were not made.

    Raises:
        UserError: A labelled comparison without a prompt or a picture.
    """
    number = len(first)
    rows = np.arange(number) if rows is None else rows
    labelled = outcome != MISSING
    _require_whole(table, rows, labelled, prompts.codes, first, second)
    identical = labelled & (first == second)
    order, dated = _order(table, rows)
    swap = outcome == SECOND
    if masks is not None:
        masks = Masks(
            np.where(swap, masks.lose, masks.win), np.where(swap, masks.win, masks.lose), masks.places
        )
    strengths = np.ones(number, np.float32) if strength is None else strength.astype(np.float32)
    index = PreferenceIndex(
        shown=shown,
        prompts=prompts,
        win=np.where(swap, second, first),
        lose=np.where(swap, first, second),
        tie=outcome == TIE,
        strength=np.where(outcome == TIE, np.float32(1), strengths),
        order=order,
        dated=dated,
        row=rows,
        axes=_optional(table, ("axis",), rows),
        users=_optional(table, ("user_id", "user"), rows),
        pictures=pictures,
        left_out=LeftOut(
            number + too_close, int((~labelled).sum()), int(identical.sum()), too_close=too_close
        ),
        table=table,
        masks=masks,
    )
    kept = labelled & ~identical
    return index if kept.all() else index.take(kept)


def _require_whole(
    table: Table,
    rows: Int64[np.ndarray, " n"],
    labelled: Bool[np.ndarray, " n"],
    prompts: Int32[np.ndarray, " n"],
    first: Int64[np.ndarray, " n"],
    second: Int64[np.ndarray, " n"],
) -> None:
    for what, lacking in (("prompt", prompts < 0), ("picture", (first < 0) | (second < 0))):
        found = np.flatnonzero(labelled & lacking)
        if len(found):
            raise UserError(f"{table.place(int(rows[found[0]]))} has no {what}; write one, or remove the row")


def _order(table: Table, rows: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], bool]:
    if "ranking_id" in table.columns:
        found = table.numbers("ranking_id")[rows]
        if np.isfinite(found).all():
            return found.astype(np.int64), True
    return rows, False


def _optional(table: Table, names: tuple[str, ...], rows: Int64[np.ndarray, " n"]) -> Texts:
    for name in names:
        if name in table.columns:
            return table.texts(name).take(rows)
    return Texts(np.full(len(rows), -1, np.int32), [])
