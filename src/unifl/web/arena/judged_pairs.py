"""Preference data that are there already: as pairs with known answers, or as votes of an arena of their own."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

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
    """What preference data say.

    Attributes:
        candidates: Their pictures, in the arena's folder.
        pairs: Each once; the first picture won, or nobody, in the first row about it.
        votes: Who, which pair, and 1, 0.5 or 0 for its first picture; the last one of each person about each pair.
        axis: What was compared.
    """

    candidates: list[Candidate]
    pairs: list[PairPlan]
    votes: list[tuple[str, int, float]]
    axis: str

    def known(self, offset: int) -> list[PairPlan]:
        """Pairs of which everybody said the same, as questions whose answer is known.

        Args:
            offset: Pictures that stand before these in the arena.
        """
        said: dict[int, set[float]] = {}
        for _, pair, value in self.votes:
            said.setdefault(pair, set()).add(value)
        return [
            PairPlan(first=plan.first + offset, second=plan.second + offset, gold=min(said[at]))
            for at, plan in enumerate(self.pairs)
            if said[at] in ({0.0}, {1.0})
        ]


def read_judged(data: str | Path, arena: Path, *, folder: str = "imported") -> JudgedPairs:
    """Read preference data in any form, and copy their pictures into an arena's folder.

    Args:
        data: See `unifl.data.preferences.read_preferences`.
        arena: Where pictures go.
        folder: Below it.

    Raises:
        UserError: No pairs, pairs about several axes, a prompt that is too long, or a picture that cannot be read.
    """
    index = read_preferences(data)
    if not isinstance(index, PreferenceIndex):
        raise UserError(f"{data} holds likes, which are no pairs; an arena compares pairs")
    axes = sorted({axis for row in range(len(index)) if (axis := index.axes.at(row)) is not None})
    if len(index) == 0 or len(axes) > 1:
        found = f"pairs about {', '.join(axes)}; take one at a time" if axes else "no pairs that were judged"
        raise UserError(f"{data} holds {found}")
    reading = _Reading(index, arena, folder)
    for row in range(len(index)):
        reading.take(row)
    return JudgedPairs(
        candidates=reading.candidates,
        pairs=[PairPlan(first=first, second=second) for first, second in reading.pairs],
        votes=[(who, pair, value) for (who, pair), value in reading.votes.items()],
        axis=axes[0] if axes else "overall",
    )


class _Reading:
    """Rows become pictures, each copied once, pairs and votes."""

    def __init__(self, index: PreferenceIndex, arena: Path, folder: str) -> None:
        self._index, self._arena, self._folder = index, arena, folder
        self._models = _models(index)
        self._numbers: dict[tuple[str, int], int] = {}
        self.candidates: list[Candidate] = []
        self.pairs: dict[tuple[int, int], int] = {}
        self.votes: dict[tuple[str, int], float] = {}

    def take(self, row: int) -> None:
        index = self._index
        prompt = checked_prompt(index.prompts.at(row) or "", index.name(row))
        won, lost = self._models[row]
        winner = self._candidate(prompt, int(index.win[row]), won)
        loser = self._candidate(prompt, int(index.lose[row]), lost)
        pair = self.pairs.get((winner, loser), self.pairs.get((loser, winner)))
        if pair is None:
            pair = self.pairs[winner, loser] = len(self.pairs)
        value = 0.5 if index.tie[row] else float((winner, loser) in self.pairs)
        self.votes[index.users.at(row) or ANYBODY, pair] = value

    def _candidate(self, prompt: str, picture: int, model: str) -> int:
        if (prompt, picture) not in self._numbers:
            file = _copied(self._index, picture, self._arena / self._folder)
            self._numbers[prompt, picture] = len(self.candidates)
            self.candidates.append(Candidate(prompt=prompt, file=f"{self._folder}/{file}", model=model))
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


def _copied(index: PreferenceIndex, picture: int, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    content, name = index.pictures.content(picture), index.pictures.name(picture)
    if isinstance(content, Image.Image):
        file = io.BytesIO()
        content.convert("RGB").save(file, "PNG")
        content = file.getvalue()
    check_picture(content, name=name)
    if isinstance(content, Path):
        content = content.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        kind = (opened.format or "").lower()
    if kind not in ("png", "jpeg", "webp", "gif"):
        raise UserError(f"the image {name} is {kind.upper()}, which browsers do not show; convert it to PNG")
    target = f"{picture:06d}.{kind}"
    write_atomically(folder / target, content)
    return target
