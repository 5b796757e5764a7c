"""Pictures that were judged one by one: likes, and the scores of a sample store; and pairs made of scores.

- Likes: `prompt`, a picture in `image` or `file_name`, and `label` or `liked`, which is 0, 1, true or false.
- A sample store (`unifl.data.store`): `prompt`, `file_name`, `scores`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from unifl.data.preferences.index import LeftOut, PreferenceIndex, make_index
from unifl.data.preferences.places import Places
from unifl.data.preferences.tables import JsonTable, Table, Texts
from unifl.errors import UserError, nearest

Pairing = Literal["all", "extremes"]


@dataclass(frozen=True)
class JudgedIndex:
    """Judged pictures by row.

    Attributes:
        shown: What errors call the data.
        prompts: Each prompt once, and which of them each row has.
        picture: Number of the picture in `pictures`.
        score: Higher is better; 1 and 0 where people liked it or not.
        row: Row of the data set, from 0.
        pictures: Where pictures are.
        left_out: What is not here.
        table: Names the rows of the data set.
        binary: Whether scores are likes.
    """

    shown: str
    prompts: Texts
    picture: Int64[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    pictures: Places
    left_out: LeftOut
    table: Table
    binary: bool

    def __len__(self) -> int:
        """Number of judged pictures n."""
        return len(self.row)

    def take(self, rows: Int64[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> JudgedIndex:
        """Some rows, by number or by a mask."""
        taken = {name: getattr(self, name)[rows] for name in ("picture", "score", "row")}
        return replace(self, prompts=self.prompts.take(rows), **taken)

    def name(self, row: int) -> str:
        """What errors call a row."""
        return self.table.place(int(self.row[row]))


def likes(table: Table, shown: str) -> JudgedIndex:
    """Pictures that were liked or not.

    Raises:
        UserError: A label that is neither; with file and row.
    """
    column = "liked" if "liked" in table.columns else "label"
    score = table.numbers(column)
    wrong = np.flatnonzero(~np.isnan(score) & (score != 0) & (score != 1))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(f"{column} of {table.place(row)} is {score[row]:g}; write 0, 1, true, false or null")
    image = "image" if "image" in table.columns else "file_name"
    (picture,), pictures = table.pictures((image,), None)
    return _judged(table, shown, score, picture, pictures, binary=True)


def stored_scores(table: JsonTable, shown: str, score: str | None) -> JudgedIndex:
    """Samples of a store with one of their scores.

    Raises:
        UserError: No such score.
    """
    (picture,), pictures = table.pictures(("file_name",), None)
    return _judged(table, shown, _scores(table, score), picture, pictures, binary=False)


def stored_pairs(
    table: JsonTable, shown: str, score: str | None, *, pairing: Pairing = "all", min_gap: float = 0.0
) -> PreferenceIndex:
    """Pairs of a store's samples of one prompt, by one score.

    The strength is the difference of scores divided by the largest difference of any pair here. Equal scores are a tie.

    Args:
        table: The store.
        shown: What errors call it.
        score: Name of the score; may be left out where there is one alone.
        pairing: Every two samples of a prompt, or its best and its worst alone.
        min_gap: Pairs whose scores differ by less are not made, in the score's own units.

    Raises:
        UserError: No such score, or a negative gap.
    """
    if not min_gap >= 0:
        raise UserError(f"min_gap is {min_gap}; it must be at least 0")
    scores, prompts = _scores(table, score), table.texts("prompt")
    (picture,), pictures = table.pictures(("file_name",), None)
    first, second = _pairs(prompts.codes.astype(np.int64), scores, pairing)
    gap = scores[first] - scores[second]
    kept = np.abs(gap) >= min_gap
    first, second, gap = first[kept], second[kept], gap[kept]
    largest = float(np.abs(gap).max(initial=0.0)) or 1.0
    # the later sample of a pair is the row that it comes from: the pair was not there before
    rows = np.maximum(first, second)
    index = make_index(
        table,
        shown=shown,
        prompts=prompts.take(first),
        first=picture[first],
        second=picture[second],
        outcome=np.sign(gap).astype(np.int8),
        pictures=pictures,
        rows=rows,
        strength=np.abs(gap) / largest,
        too_close=int((~kept).sum()),
    )
    missing = int(np.isnan(scores).sum())
    return replace(index, left_out=replace(index.left_out, missing=missing))


def _judged(
    table: Table,
    shown: str,
    score: Float64[np.ndarray, " n"],
    picture: Int64[np.ndarray, " n"],
    pictures: Places,
    *,
    binary: bool,
) -> JudgedIndex:
    prompts = table.texts("prompt")
    there = ~np.isnan(score)
    for what, lacking in (("prompt", prompts.codes < 0), ("picture", picture < 0)):
        found = np.flatnonzero(there & lacking)
        if len(found):
            raise UserError(f"{table.place(int(found[0]))} has no {what}; write one, or remove the row")
    number = len(score)
    left_out = LeftOut(number, int((~there).sum()))
    rows = np.arange(number)
    index = JudgedIndex(
        shown, prompts, picture, score.astype(np.float32), rows, pictures, left_out, table, binary
    )
    return index.take(there)


def _scores(table: JsonTable, name: str | None) -> Float64[np.ndarray, " n"]:
    """One score of every sample; NaN where it has none."""
    held = table.values("scores")
    known: dict[str, None] = {}
    for row, scores in enumerate(held):
        if not isinstance(scores, dict):
            raise UserError(f"scores of {table.place(row)} is {scores!r}; {{name: number}} is needed there")
        known |= dict.fromkeys(scores)
    if name is None and len(known) == 1:
        (name,) = known
    if name not in known:
        guess = None if name is None else nearest(name, known)
        hint = f"did you mean {guess!r}? Otherwise " if guess else ""
        asked = "which score decides is not said" if name is None else f"no sample has the score {name!r}"
        raise UserError(f"{asked}; {hint}set `score` to one of {', '.join(known) or '(there are none)'}")
    return np.array([_number(table, row, name, scores.get(name)) for row, scores in enumerate(held)])


def _number(table: JsonTable, row: int, name: str | None, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise UserError(f"the score {name!r} of {table.place(row)} is {value!r}; a finite number is needed")
    return float(value)


def _pairs(
    prompts: Int64[np.ndarray, " n"], scores: Float64[np.ndarray, " n"], pairing: Pairing
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Rows of the two samples of each pair, prompt by prompt."""
    there = np.flatnonzero(~np.isnan(scores) & (prompts >= 0))
    # by prompt, and within it by score from the best, so that the extremes are first and last
    ordered = there[np.lexsort((there, -scores[there], prompts[there]))]
    _, starts = np.unique(prompts[ordered], return_index=True)
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for group in np.split(ordered, starts[1:]):
        if pairing == "extremes" and len(group) > 1:
            left, right = group[:1], group[-1:]
        else:
            upper = np.triu_indices(len(group), k=1)
            left, right = group[upper[0]], group[upper[1]]
        first.append(left)
        second.append(right)
    return np.concatenate(first), np.concatenate(second)
