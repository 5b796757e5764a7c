"""A new arena, from pictures in folders or from pairs that were judged elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from unifl.errors import UserError
from unifl.web.arena.database import DATABASE, Arena
from unifl.web.arena.gather import read_folder, require_distinct, take_in
from unifl.web.arena.judged_pairs import read_judged
from unifl.web.arena.pairs import Between, Candidate, plan_pairs
from unifl.web.arena.settings import ArenaSettings


def require_none(folder: Path) -> None:
    """Refuse a folder before anything is drawn or copied into it.

    Raises:
        UserError: It holds an arena.
    """
    if (folder / DATABASE).exists():
        raise UserError(
            f"{folder} holds an arena already; start it by `unifl arena serve`, or name another folder"
        )


def named_folders(texts: Sequence[str]) -> list[Candidate]:
    """The pictures of several folders, each as FOLDER or NAME=FOLDER.

    Raises:
        UserError: See `read_folder` and `require_distinct`.
    """
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        found += read_folder(Path(path), name) if equals else read_folder(Path(text))
    require_distinct(found)
    return found


def make_arena(
    folder: Path,
    candidates: Sequence[Candidate],
    settings: ArenaSettings,
    *,
    between: Between = "models",
    limit: int | None = None,
    gold: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Plan pairs, check and copy pictures, and write the arena.

    Args:
        folder: Of the arena.
        candidates: With their places on this machine.
        settings: What is asked.
        between: See `plan_pairs`.
        limit: At most so many pairs.
        gold: Preference data whose answers are known.
        progress: Called with (pictures done, pictures).

    Returns:
        Numbers of pairs, and of those whose answer is known.

    Raises:
        UserError: Pictures or data that cannot be taken.
    """
    pairs = plan_pairs(candidates, between=between, limit=limit, seed=settings.seed)
    taken, known = take_in(candidates, folder, progress=progress), []
    if gold is not None:
        judged = read_judged(gold, folder, folder="known")
        known = judged.known(len(taken))
        if not known:
            raise UserError(f"{gold} has no pair whose answer is clear; give pairs that somebody won")
        taken += judged.candidates
    Arena.create(folder, taken, [*pairs, *known], settings).close()
    return len(pairs), len(known)


def import_arena(folder: Path, data: str, *, overlap: int, question: str) -> tuple[int, int]:
    """An arena of pairs that were judged elsewhere, with their votes; returns numbers of votes and pairs.

    Raises:
        UserError: See `read_judged`.
    """
    found = read_judged(data, folder)
    settings = ArenaSettings(question=question, axes=(found.axis,), overlap=overlap)
    arena = Arena.create(folder, found.candidates, found.pairs, settings)
    arena.take_votes([(who, pair, {found.axis: value}) for who, pair, value in found.votes])
    arena.close()
    return len(found.votes), len(found.pairs)
