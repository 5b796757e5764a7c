"""Preference data that are there already: as pairs with known answers, or as votes of an arena of their own."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from unifl.data.pictures import check_picture
from unifl.data.preferences import PreferenceIndex, read_preferences
from unifl.disk import write_atomically
from unifl.errors import UserError
from unifl.randomness import permutation
from unifl.web.arena.gather import checked_prompt
from unifl.web.arena.new import TakenVote
from unifl.web.arena.pairs import Candidate, PairPlan

ANYBODY = "imported"
"""Who judged where data do not say."""
ANY_AXIS = "overall"
"""What was compared where data do not say."""


@dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """What preference data say. Their pictures were looked at, and are copied by `copy`.

    Attributes:
        candidates: Their pictures, under the names that these will have in the arena's folder.
        pairs: Each once, on the sides on which the first row about it has its pictures.
        votes: The last one of each person about each pair, in their order.
        said: All that any row says of the first picture of each pair: 1, 0.5 or 0.
        repeated: Rows that are not among the votes, because the same person judged the pair again.
        unlabelled: Rows that say nothing of two different pictures.
        axis: What was compared; None where data do not say.
        pictures: Numbers of the pictures in the data, by name.
        index: Where they are.
    """

    candidates: list[Candidate]
    pairs: list[PairPlan]
    votes: list[TakenVote]
    said: list[set[float]]
    repeated: int
    unlabelled: int
    axis: str | None
    pictures: dict[str, int]
    index: PreferenceIndex

    def known(self, offset: int) -> list[PairPlan]:
        """Pairs of which every row says the same, as questions whose answer is known.

        Args:
            offset: Pictures that stand before these in the arena.
        """
        return [
            PairPlan(first=plan.first + offset, second=plan.second + offset, gold=min(said))
            for plan, said in zip(self.pairs, self.said, strict=True)
            if said in ({0.0}, {1.0})
        ]

    def copy(self, arena: Path) -> None:
        """Put the pictures into an arena's folder."""
        for file, picture in self.pictures.items():
            (arena / file).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(arena / file, _content(self.index, picture))


def read_judged(data: str | Path, folder: str) -> JudgedPairs:
    """Read preference data in any form, and look at all of their pictures.

    Args:
        data: See `unifl.data.preferences.read_preferences`.
        folder: Where pictures will be, below the arena's.

    Raises:
        UserError: No pairs, pairs about several axes, a prompt that is too long, or a picture that cannot be read.
    """
    index = read_preferences(data)
    if not isinstance(index, PreferenceIndex):
        raise UserError(
            f"{data} holds likes of single pictures, and an arena compares two; name data whose rows have pairs"
        )
    if len(index) == 0:
        raise UserError(f"{data} holds no pairs that were judged; name data whose rows have a label")
    axes = sorted({axis for row in range(len(index)) if (axis := index.axes.at(row)) is not None})
    if len(axes) > 1:
        raise UserError(f"{data} holds pairs about {', '.join(axes)}; keep the rows of one axis")
    axis = axes[0] if axes else None
    reading = _Reading(index, folder, axis or ANY_AXIS)
    for row in np.argsort(index.order, kind="stable").tolist():
        reading.take(row)
    return JudgedPairs(
        candidates=reading.candidates,
        pairs=[PairPlan(first=first, second=second) for first, second in reading.pairs],
        votes=list(reading.votes.values()),
        said=reading.said,
        repeated=len(index) - len(reading.votes),
        unlabelled=index.left_out.read - len(index),
        axis=axis,
        pictures=reading.pictures,
        index=index,
    )


class _Reading:
    """Rows become pictures, each once, pairs and votes."""

    def __init__(self, index: PreferenceIndex, folder: str, axis: str) -> None:
        self._index, self._folder, self._axis = index, folder, axis
        self._second_won = _second_won(index)
        self._models = _columns(index, "model_0", "model_1")
        self._made = _columns(index, "created_at", "milliseconds")
        self._numbers: dict[tuple[str, int, str], int] = {}
        self._files: dict[int, str] = {}
        self.candidates: list[Candidate] = []
        self.pairs: dict[tuple[int, int], int] = {}
        self.said: list[set[float]] = []
        self.votes: dict[tuple[str, int], TakenVote] = {}

    @property
    def pictures(self) -> dict[str, int]:
        return {file: picture for picture, file in self._files.items()}

    def take(self, row: int) -> None:
        index = self._index
        prompt = checked_prompt(index.prompts.at(row) or "", index.name(row))
        pictures = (int(index.win[row]), int(index.lose[row]))
        if self._second_won[row]:
            pictures = pictures[::-1]
        models = self._models[row]
        first, second = (self._candidate(prompt, *one) for one in zip(pictures, models, strict=True))
        value = 0.5 if index.tie[row] else float(not self._second_won[row])
        pair = self.pairs.get((first, second))
        if pair is None and (second, first) in self.pairs:
            pair, value = self.pairs[second, first], 1 - value
        if pair is None:
            pair = self.pairs[first, second] = len(self.pairs)
            self.said.append(set())
        self.said[pair].add(value)
        who = index.users.at(row) or ANYBODY
        self.votes.pop((who, pair), None)  # the later one stands where it was made
        self.votes[who, pair] = self._vote(row, who, pair, value)

    def _vote(self, row: int, who: str, pair: int, value: float) -> TakenVote:
        made, took = self._made[row]
        return TakenVote(
            who=who,
            pair=pair,
            answers={self._axis: value},
            at=_seconds(made, self._index.name(row)) if made else None,
            milliseconds=int(took) if took.isascii() and took.isdigit() else 0,
        )

    def _candidate(self, prompt: str, picture: int, model: str) -> int:
        shown = (prompt, picture, model)  # two models may have drawn the very same
        if shown not in self._numbers:
            if picture not in self._files:
                self._files[picture] = f"{self._folder}/{picture:06d}.{_kind(self._index, picture)}"
            self._numbers[shown] = len(self.candidates)
            self.candidates.append(Candidate(prompt=prompt, file=self._files[picture], model=model))
        return self._numbers[shown]


def _second_won(index: PreferenceIndex) -> list[bool]:
    """Whether a row shows the winner second. Where data have no sides, they are as good as a coin.

    Were it always the same side, everybody's agreement would count as chance.
    """
    table = index.table
    if {"label_0", "label_1"} <= table.columns:
        won = table.numbers("label_1") > table.numbers("label_0")
        return won[index.row].tolist()
    if {"best_image_uid", "image_1_uid"} <= table.columns:
        best, second = table.texts("best_image_uid"), table.texts("image_1_uid")
        return [best.at(row) == second.at(row) for row in index.row.tolist()]
    return (permutation(len(index), 0, "imported sides") % 2 == 1).tolist()


def _columns(index: PreferenceIndex, first: str, second: str) -> list[tuple[str, str]]:
    """Texts of two columns; "" where a row or the data have none."""
    found = []
    for name in (first, second):
        texts = index.table.texts(name) if name in index.table.columns else None
        found.append(["" if texts is None else texts.at(row) or "" for row in index.row.tolist()])
    return list(zip(*found, strict=True))


def _seconds(text: str, place: str) -> float:
    """Since 1970; times without a zone are UTC, as in Pick-a-Pic.

    Raises:
        UserError: It is no time.
    """
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"created_at of {place} is {text!r}; write a time as 2026-01-31T12:00:00, or nothing"
        ) from error


def _kind(index: PreferenceIndex, picture: int) -> str:
    """The format of a picture that browsers show."""
    content, name = _content(index, picture), index.pictures.name(picture)
    check_picture(content, name=name)
    with Image.open(io.BytesIO(content)) as opened:
        kind = (opened.format or "").lower()
    if kind not in ("png", "jpeg", "webp", "gif"):
        raise UserError(f"the image {name} is {kind.upper()}, which browsers do not show; convert it to PNG")
    return kind


def _content(index: PreferenceIndex, picture: int) -> bytes:
    content = index.pictures.content(picture)
    if isinstance(content, Image.Image):
        file = io.BytesIO()
        content.convert("RGB").save(file, "PNG")
        return file.getvalue()
    return content.read_bytes() if isinstance(content, Path) else content
