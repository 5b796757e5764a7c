"""The SQLite file of an arena: its tables, and how it is opened."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from unifl.errors import UserError
from unifl.web.arena.settings import ArenaSettings

FORMAT = 1
TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, file TEXT NOT NULL, model TEXT NOT NULL, seed INTEGER NOT NULL
);
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL REFERENCES pictures, second INTEGER NOT NULL REFERENCES pictures,
    gold REAL, given INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX least_given ON pairs (gold, given, id);
CREATE TABLE annotators (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE, made REAL NOT NULL
);
CREATE TABLE shown (
    id INTEGER PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotators, pair INTEGER NOT NULL REFERENCES pairs,
    swapped INTEGER NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, UNIQUE (annotator, pair)
);
CREATE INDEX by_state ON shown (annotator, state);
CREATE TABLE votes (
    id INTEGER PRIMARY KEY, shown INTEGER NOT NULL REFERENCES shown, answers TEXT NOT NULL, at REAL NOT NULL,
    milliseconds INTEGER NOT NULL, withdrawn INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX one_vote ON votes (shown) WHERE withdrawn = 0;
"""


def connected(path: Path) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return.

    Raises:
        UserError: No database, or a disk that is full or may not be written to.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.OperationalError as error:
        connection.close()
        raise cannot_write(path, error) from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(f"{path} is no database, or damaged ({error}); restore it from a copy") from error
    return connection


def cannot_write(path: Path, error: sqlite3.OperationalError) -> UserError:
    """What to say of a disk that SQLite cannot work on."""
    return UserError(f"cannot write {path} ({error}); make room on its disk, or check its rights")


def read_settings(connection: sqlite3.Connection, path: Path) -> ArenaSettings:
    """What an arena asks.

    Raises:
        UserError: No arena, or one of another version.
    """
    try:
        about = {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM about")}
    except (sqlite3.DatabaseError, ValueError) as error:
        connection.close()
        raise UserError(f"{path} holds no arena ({error}); restore it from a copy") from error
    if about.get("format") != FORMAT:
        connection.close()
        raise UserError(
            f"{path} has format {about.get('format')}, and this version of unifl reads {FORMAT}; open it with the "
            "version that made it, or make another arena"
        )
    given = about["settings"]
    return ArenaSettings(**{**given, "axes": tuple(given["axes"])})
