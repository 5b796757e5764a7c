"""The file of a new arena, whole before it has its name."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from unifl.web.arena.file import FORMAT, TABLES, connected
from unifl.web.arena.pairs import Candidate, PairPlan
from unifl.web.arena.people import hashed
from unifl.web.arena.settings import ArenaSettings


@dataclass(frozen=True, kw_only=True)
class TakenVote:
    """A judgement that was made elsewhere.

    Attributes:
        who: Their name; who is new gets no link.
        pair: Number.
        answers: What each axis says of the first picture: 1, 0.5 or 0.
        at: When, in seconds since 1970; None where that is not known.
        milliseconds: That it took; 0 where that is not known.
    """

    who: str
    pair: int
    answers: Mapping[str, float]
    at: float | None = None
    milliseconds: int = 0


def write_new(
    path: Path,
    candidates: Sequence[Candidate],
    pairs: Sequence[PairPlan],
    settings: ArenaSettings,
    votes: Sequence[TakenVote],
) -> None:
    """Write a database; see `Arena.create`."""
    with closing(connected(path)) as connection:
        connection.executescript(TABLES)
        with connection:
            connection.execute("BEGIN")
            about = {"format": FORMAT, "settings": asdict(settings)}
            connection.executemany(
                "INSERT INTO about VALUES (?, ?)", [(key, json.dumps(value)) for key, value in about.items()]
            )
            connection.executemany(
                "INSERT INTO pictures VALUES (?, ?, ?, ?, ?)",
                [(n, one.prompt, one.file, one.model, one.seed) for n, one in enumerate(candidates)],
            )
            connection.executemany(
                "INSERT INTO pairs (id, first, second, gold) VALUES (?, ?, ?, ?)",
                [(n, pair.first, pair.second, pair.gold) for n, pair in enumerate(pairs)],
            )
            _take(connection, votes)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _take(connection: sqlite3.Connection, votes: Sequence[TakenVote]) -> None:
    now = time.time()
    names = dict.fromkeys(vote.who for vote in votes)
    connection.executemany(
        "INSERT INTO annotators (name, token, made) VALUES (?, ?, ?)",
        [(name, hashed(secrets.token_urlsafe(24)), now) for name in names],
    )
    numbers = dict(connection.execute("SELECT name, id FROM annotators"))
    for vote in votes:
        at = now if vote.at is None else vote.at
        connection.execute("UPDATE pairs SET given = given + 1 WHERE id = ?", (vote.pair,))
        shown = connection.execute(
            "INSERT INTO shown (annotator, pair, swapped, at, state) VALUES (?, ?, 0, ?, 'judged')",
            (numbers[vote.who], vote.pair, at),
        ).lastrowid
        connection.execute(
            "INSERT INTO votes (shown, answers, at, milliseconds) VALUES (?, ?, ?, ?)",
            (shown, json.dumps(dict(vote.answers)), at, vote.milliseconds),
        )
