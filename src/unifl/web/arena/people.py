"""People who judge, and whoever runs the arena: names, and tokens of which the file knows hashes alone."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass

from unifl.errors import UserError


@dataclass(frozen=True)
class Annotator:
    """Somebody who judges."""

    id: int
    name: str


@dataclass(frozen=True)
class Tokens:
    """All that open something, by their hashes; held in memory, so that guesses cost no query.

    Attributes:
        annotators: Whose they are.
        admin: That of the admin page; None where there is none yet.
    """

    annotators: Mapping[str, Annotator]
    admin: str | None

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Tokens:
        """As they stand now."""
        rows = connection.execute("SELECT token, id, name FROM annotators").fetchall()
        admin = connection.execute("SELECT value FROM about WHERE key = 'admin'").fetchone()
        return cls(
            {token: Annotator(number, name) for token, number, name in rows},
            None if admin is None else json.loads(admin[0]),
        )

    def annotator(self, token: str) -> Annotator | None:
        """Whose link a token is; None for nobody's."""
        return self.annotators.get(hashed(token))

    def is_admin(self, token: str | None) -> bool:
        """Whether a token is that of the admin page; without one, whether there is any."""
        if token is None or self.admin is None:
            return token is None and self.admin is not None
        return secrets.compare_digest(self.admin, hashed(token))


def add_annotator(connection: sqlite3.Connection, name: str) -> str:
    """Somebody new; returns their token.

    Raises:
        UserError: An empty name, or one that is taken.
    """
    if not name.strip():
        raise UserError("an annotator needs a name; write one")
    token = secrets.token_urlsafe(24)
    try:
        connection.execute(
            "INSERT INTO annotators (name, token, made) VALUES (?, ?, ?)",
            (name.strip(), hashed(token), time.time()),
        )
    except sqlite3.IntegrityError:
        raise UserError(f"there is an annotator {name.strip()!r} already; choose another name") from None
    return token


def renew(connection: sqlite3.Connection, name: str) -> str:
    """Another token for somebody.

    Raises:
        UserError: Nobody of that name.
    """
    token = secrets.token_urlsafe(24)
    changed = connection.execute("UPDATE annotators SET token = ? WHERE name = ?", (hashed(token), name))
    if not changed.rowcount:
        raise UserError(f"there is no annotator {name!r}; add them first")
    return token


def new_admin(connection: sqlite3.Connection) -> str:
    """Another token of the admin page."""
    token = secrets.token_urlsafe(24)
    connection.execute("INSERT OR REPLACE INTO about VALUES ('admin', ?)", (json.dumps(hashed(token)),))
    return token


def hashed(token: str) -> str:
    """What the file knows of a token."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
