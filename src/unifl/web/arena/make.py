"""A new arena, from pictures in folders or from pairs that were judged elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from unifl.errors import UserError
from unifl.web.arena.database import DATABASE, Arena
from unifl.web.arena.gather import read_folder, require_distinct, take_in
from unifl.web.arena.judged_pairs import ANY_AXIS, JudgedPairs, read_judged
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
        UserError: See `read_folder`.
    """
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        is_named = equals and not Path(text).exists()  # a path may have the sign, too
        found += read_folder(Path(path), name) if is_named else read_folder(Path(text))
    return found


def read_known(data: str, axes: Sequence[str]) -> JudgedPairs:
    """Pairs whose answer is known.

    Args:
        data: Preference data.
        axes: What the arena asks.

    Raises:
        UserError: No clear answers, or answers about something that is not asked.
    """
    judged = read_judged(data, folder="known")
    if not judged.known(0):
        raise UserError(
            f"{data} has no pair whose answer is clear; give pairs that somebody won, and that no other row contradicts"
        )
    if judged.axis is None and len(axes) > 1:
        raise UserError(
            f"{data} does not say which of {', '.join(axes)} its answers are about; give its rows an `axis`"
        )
    if judged.axis is not None and judged.axis not in axes:
        raise UserError(
            f"the answers of {data} are about {judged.axis}, and the arena asks for {', '.join(axes)}; ask for "
            f"{judged.axis} as well, or give other data"
        )
    return judged


def make_arena(
    folder: Path,
    candidates: Sequence[Candidate],
    settings: ArenaSettings,
    *,
    between: Between = "models",
    limit: int | None = None,
    gold: JudgedPairs | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Plan pairs, check and copy pictures, and write the arena.

    Args:
        folder: Of the arena.
        candidates: With their places on this machine.
        settings: What is asked.
        between: See `plan_pairs`.
        limit: At most so many pairs.
        gold: Pairs whose answer is known, see `read_known`.
        progress: Called with (pictures done, pictures).

    Returns:
        Numbers of pairs, and of those whose answer is known.

    Raises:
        UserError: Pictures that cannot be taken, or that make no pair.
    """
    require_distinct(candidates)
    pairs = plan_pairs(candidates, between=between, limit=limit, seed=settings.seed)
    if gold is not None and len(pairs) < settings.gold_every - 1:
        raise UserError(
            f"every {settings.gold_every}th pair is one whose answer is known, and there are {len(pairs)} others, so "
            f"that none would come; ask them more often, every {len(pairs) + 1}th or less (--gold-every)"
        )
    taken, known = take_in(candidates, folder, progress=progress), []
    if gold is not None:
        known = gold.known(len(taken))
        gold.copy(folder)
        taken += gold.candidates
        settings = replace(settings, gold_axis=gold.axis)
    Arena.create(folder, taken, [*pairs, *known], settings).close()
    return len(pairs), len(known)


def import_arena(folder: Path, data: str, *, overlap: int, question: str) -> JudgedPairs:
    """Make an arena of pairs that were judged elsewhere, with their votes; returns what the data say.

    Raises:
        UserError: See `read_judged`.
    """
    found = read_judged(data, folder="imported")
    settings = ArenaSettings(question=question, axes=(found.axis or ANY_AXIS,), overlap=overlap)
    found.copy(folder)
    Arena.create(folder, found.candidates, found.pairs, settings, found.votes).close()
    return found
