"""Preference data that are there already: as pairs with known answers, or as votes of an arena of their own."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unifl.data.pictures import check_picture
from unifl.data.preferences import PreferenceIndex, read_preferences
from unifl.disk import write_atomically
from unifl.errors import UserError
from unifl.web.arena.gather import checked_prompt
from unifl.web.arena.pairs import Candidate, PairPlan

ANYBODY = "imported"
"""Who judged where data do not say."""


@dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """What preference data say. Their pictures were looked at, and are copied by `copy`.

    Attributes:
        candidates: Their pictures, under the names that these will have in the arena's folder.
        pairs: Each once; the first picture won, or nobody, in the first row about it.
        votes: Who, which pair, and 1, 0.5 or 0 for its first picture; the last one of each person about each pair.
        said: All that any row says of each pair, as in `votes`.
        repeated: Rows that are not among the votes, because the same person judged the pair again.
        unlabelled: Rows that say nothing of two different pictures.
        axis: What was compared; None where data do not say.
        pictures: Numbers of the pictures in the data, by name.
        index: Where they are.
    """

    candidates: list[Candidate]
    pairs: list[PairPlan]
    votes: list[tuple[str, int, float]]
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
    reading = _Reading(index, folder)
    for row in np.argsort(index.order, kind="stable").tolist():
        reading.take(row)
    return JudgedPairs(
        candidates=reading.candidates,
        pairs=[PairPlan(first=first, second=second) for first, second in reading.pairs],
        votes=[(who, pair, value) for (who, pair), value in reading.votes.items()],
        said=reading.said,
        repeated=len(index) - len(reading.votes),
        unlabelled=index.left_out.read - len(index),
        axis=axes[0] if axes else None,
        pictures=reading.pictures,
        index=index,
    )


class _Reading:
    """Rows become pictures, each once, pairs and votes."""

    def __init__(self, index: PreferenceIndex, folder: str) -> None:
        self._index, self._folder = index, folder
        self._models = _models(index)
        self._numbers: dict[tuple[str, int], int] = {}
        self._files: dict[int, str] = {}
        self.candidates: list[Candidate] = []
        self.pairs: dict[tuple[int, int], int] = {}
        self.said: list[set[float]] = []
        self.votes: dict[tuple[str, int], float] = {}

    @property
    def pictures(self) -> dict[str, int]:
        return {file: picture for picture, file in self._files.items()}

    def take(self, row: int) -> None:
        index = self._index
        prompt = checked_prompt(index.prompts.at(row) or "", index.name(row))
        won, lost = self._models[row]
        winner = self._candidate(prompt, int(index.win[row]), won)
        loser = self._candidate(prompt, int(index.lose[row]), lost)
        pair = self.pairs.get((winner, loser), self.pairs.get((loser, winner)))
        if pair is None:
            pair = self.pairs[winner, loser] = len(self.pairs)
            self.said.append(set())
        value = 0.5 if index.tie[row] else float((winner, loser) in self.pairs)
        self.said[pair].add(value)
        self.votes[index.users.at(row) or ANYBODY, pair] = value

    def _candidate(self, prompt: str, picture: int, model: str) -> int:
        if (prompt, picture) not in self._numbers:
            if picture not in self._files:
                self._files[picture] = f"{self._folder}/{picture:06d}.{_kind(self._index, picture)}"
            self._numbers[prompt, picture] = len(self.candidates)
            self.candidates.append(Candidate(prompt=prompt, file=self._files[picture], model=model))
        return self._numbers[prompt, picture]


def _models(index: PreferenceIndex) -> list[tuple[str, str]]:
    """Models of winner and loser of each row; tables say which drew the first and the second picture."""
    table = index.table
    if not {"model_0", "model_1", "label_0", "label_1"} <= table.columns:
        return [("", "")] * len(index)
    first, second = table.texts("model_0"), table.texts("model_1")
    swapped = table.numbers("label_1") > table.numbers("label_0")
    names = [(first.at(row) or "", second.at(row) or "") for row in index.row.tolist()]
    return [pair[::-1] if swapped[row] else pair for pair, row in zip(names, index.row.tolist(), strict=True)]


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
