"""Which pair somebody gets next."""

from __future__ import annotations

import hashlib
import sqlite3
import time

from unifl.web.arena.settings import ArenaSettings

HAD = "SELECT pair FROM shown WHERE annotator = ? AND state != 'returned'"
"""Pairs that somebody was shown and has not given back."""
JUDGED = "SELECT COUNT(*) FROM shown WHERE annotator = ? AND state = 'judged'"
"""How many pairs somebody has judged."""
_STALE = 1800.0  # seconds after which a pair that was shown and not judged goes to somebody else


def give(connection: sqlite3.Connection, settings: ArenaSettings, annotator: int) -> int | None:
    """A new pair for somebody: a known one when it is time, else the one that fewest have.

    Args:
        connection: Within a transaction.
        settings: How often.
        annotator: Number.

    Returns:
        Number of the showing; None where nothing is left.
    """
    (done,) = connection.execute(JUDGED, (annotator,)).fetchone()
    pair = None
    if settings.gold_every and (done + 1) % settings.gold_every == 0:
        pair = _fresh(connection, annotator, "gold IS NOT NULL", ())
    if pair is None:
        pair = _unjudged(connection, settings, annotator)
    if pair is None:  # what others left lying
        stale = time.time() - _STALE
        give_back(connection, "state = 'open' AND at < ? AND annotator != ?", (stale, annotator))
        pair = _unjudged(connection, settings, annotator)
    if pair is None:
        return None
    connection.execute("UPDATE pairs SET given = given + 1 WHERE id = ?", (pair,))
    found = connection.execute(
        "INSERT INTO shown (annotator, pair, swapped, at, state) VALUES (?, ?, ?, ?, 'open') "
        "ON CONFLICT (annotator, pair) DO UPDATE SET state = 'open', at = excluded.at RETURNING id",
        (annotator, pair, _swapped(settings.seed, annotator, pair), time.time()),
    ).fetchone()
    return int(found[0])


def give_back(connection: sqlite3.Connection, which: str, values: tuple[object, ...]) -> None:
    """Let pairs that were shown and not judged be given again, to anybody."""
    # a pair may lie open with several people, and each of them gives it back
    connection.execute(
        f"UPDATE pairs SET given = given - (SELECT COUNT(*) FROM shown WHERE pair = pairs.id AND {which}) "
        f"WHERE id IN (SELECT pair FROM shown WHERE {which})",
        (*values, *values),
    )
    connection.execute(f"UPDATE shown SET state = 'returned' WHERE {which}", values)


def _unjudged(connection: sqlite3.Connection, settings: ArenaSettings, annotator: int) -> int | None:
    return _fresh(connection, annotator, "gold IS NULL AND given < ?", (settings.overlap,))


def _fresh(
    connection: sqlite3.Connection, annotator: int, which: str, values: tuple[object, ...]
) -> int | None:
    row = connection.execute(
        f"SELECT id FROM pairs WHERE {which} AND id NOT IN ({HAD}) ORDER BY given, id LIMIT 1",
        (*values, annotator),
    ).fetchone()
    return None if row is None else int(row[0])


def _swapped(seed: int, annotator: int, pair: int) -> bool:
    """Whether the second picture is on the left: as good as a coin, and the same after a restart."""
    told = f"{seed} {annotator} {pair}".encode()
    return bool(hashlib.blake2b(told, digest_size=1).digest()[0] & 1)
