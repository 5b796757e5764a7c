"""What an arena remembers, in one SQLite file: pictures, pairs, annotators, and every vote.

A vote is on the disk before it is acknowledged (write-ahead log, synchronous in full), so that a killed server loses
none. One process at a time may open an arena. Links of annotators carry tokens of which the file knows hashes alone.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from unifl.errors import UserError
from unifl.web.arena.file import FORMAT, TABLES, connected, read_settings
from unifl.web.arena.pairs import Candidate, PairPlan
from unifl.web.arena.settings import ArenaSettings

DATABASE = "arena.sqlite"
ANSWERS: Mapping[str, float] = {"left": 1.0, "same": 0.5, "right": 0.0}
"""What an annotator can say of an axis, and what it is worth for the picture on the left."""

_HAD = "SELECT pair FROM shown WHERE annotator = ? AND state != 'returned'"
_STALE = 1800.0  # seconds after which a pair that was shown and not judged goes to somebody else


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A pair as one annotator sees it.

    Attributes:
        id: Of the showing; a vote names it.
        prompt: What was asked for.
        left: Number of the picture on the left.
        right: That on the right.
        done: Pairs that this annotator has judged.
        left_over: Pairs that are still there for this annotator.
    """

    id: int
    prompt: str
    left: int
    right: int
    done: int
    left_over: int


@dataclass(frozen=True)
class Annotator:
    """Somebody who judges."""

    id: int
    name: str


class Arena:
    """An arena in a folder.

    Args:
        folder: With `arena.sqlite`, see `create`.

    Raises:
        UserError: No arena there, one of another version, a damaged file, or one that another process has open.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / DATABASE
        if not path.is_file():
            raise UserError(
                f"{self.folder} holds no arena (no {DATABASE}); make one first, or check the path"
            )
        self._lock = FileLock(self.folder / ".arena.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process has the arena in {self.folder} open; stop it first: two servers on one "
                "database would give out the same pairs"
            ) from None
        try:
            self._connection = connected(path)
            self.settings = read_settings(self._connection, path)
        except BaseException:
            self._lock.release()
            raise
        self._turn = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        candidates: Sequence[Candidate],
        pairs: Sequence[PairPlan],
        settings: ArenaSettings | None = None,
    ) -> Arena:
        """Make an arena and open it.

        Args:
            folder: Made if needed.
            candidates: Pictures.
            pairs: Comparisons, by the numbers of candidates, in the order in which they are given out.
            settings: What is asked.

        Raises:
            UserError: There is an arena already, or there are no pairs.
        """
        path = Path(folder) / DATABASE
        if path.exists():
            raise UserError(f"{folder} holds an arena already; open it, or choose another folder")
        if not any(pair.gold is None for pair in pairs):
            raise UserError("an arena needs pairs whose answer is not known; there are none")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        connection = connected(unfinished)
        connection.executescript(TABLES)
        with connection:
            connection.execute("BEGIN")
            about = {"format": FORMAT, "settings": asdict(settings or ArenaSettings())}
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
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        unfinished.rename(path)
        return cls(folder)

    def close(self) -> None:
        """Let others open it."""
        with self._turn:
            self._connection.close()
        self._lock.release()

    # --- people -----------------------------------------------------------------------------------------------

    def add_annotator(self, name: str) -> str:
        """Somebody new; the token of their link, which is kept nowhere else.

        Raises:
            UserError: An empty name, or one that is taken.
        """
        if not name.strip():
            raise UserError("an annotator needs a name")
        token = secrets.token_urlsafe(24)
        try:
            with self._writing() as connection:
                connection.execute(
                    "INSERT INTO annotators (name, token, made) VALUES (?, ?, ?)",
                    (name.strip(), _hashed(token), time.time()),
                )
        except sqlite3.IntegrityError:
            raise UserError(f"there is an annotator {name.strip()!r} already; choose another name") from None
        return token

    def annotator(self, token: str) -> Annotator | None:
        """Whose link a token is; None for nobody's."""
        with self._turn:
            row = self._connection.execute(
                "SELECT id, name FROM annotators WHERE token = ?", (_hashed(token),)
            ).fetchone()
        return None if row is None else Annotator(*row)

    # --- judging ----------------------------------------------------------------------------------------------

    def next(self, annotator: Annotator) -> Shown | None:
        """The pair to judge now: the one that is open, as after a reload, or a new one; None when all is done."""
        with self._writing() as connection:
            row = connection.execute(
                "SELECT id FROM shown WHERE annotator = ? AND state = 'open' ORDER BY id LIMIT 1",
                (annotator.id,),
            ).fetchone()
            number = row[0] if row is not None else self._give(connection, annotator)
            return None if number is None else self._shown(connection, annotator, number)

    def vote(
        self, annotator: Annotator, shown: int, answers: Mapping[str, str], *, milliseconds: int = 0
    ) -> bool:
        """Record a vote; it is on the disk when this returns.

        Args:
            annotator: Who.
            shown: Of which showing.
            answers: left, same or right for every axis.
            milliseconds: That it took.

        Returns:
            Whether it is new; the same vote sent twice counts once.

        Raises:
            UserError: A showing of somebody else or none, answers that are not asked for, or another vote on it.
        """
        if answers.keys() != set(self.settings.axes) or any(said not in ANSWERS for said in answers.values()):
            raise UserError(
                f"a vote says {', '.join(ANSWERS)} for each of {', '.join(self.settings.axes)}; got "
                f"{dict(answers)!r:.200}"
            )
        with self._writing() as connection:
            row = connection.execute(
                "SELECT state, swapped FROM shown WHERE id = ? AND annotator = ?", (shown, annotator.id)
            ).fetchone()
            if row is None:
                raise UserError("this pair was not shown to you; reload the page")
            state, swapped = row
            values = {axis: _of_first(ANSWERS[said], swapped) for axis, said in answers.items()}
            if state == "judged":
                (kept,) = connection.execute(
                    "SELECT answers FROM votes WHERE shown = ? AND withdrawn = 0", (shown,)
                ).fetchone()
                if json.loads(kept) == values:
                    return False
                raise UserError("this pair has your vote already; undo it to change it")
            if (
                state == "returned"
            ):  # it was open for so long that somebody else got it; the vote counts all the same
                connection.execute(
                    "UPDATE pairs SET given = given + 1 WHERE id = (SELECT pair FROM shown WHERE id = ?)",
                    (shown,),
                )
            connection.execute("UPDATE shown SET state = 'judged' WHERE id = ?", (shown,))
            connection.execute(
                "INSERT INTO votes (shown, answers, at, milliseconds) VALUES (?, ?, ?, ?)",
                (shown, json.dumps(values), time.time(), int(milliseconds)),
            )
            return True

    def undo(self, annotator: Annotator) -> Shown | None:
        """Take back the last vote, whose pair is open again; None where there is none."""
        with self._writing() as connection:
            row = connection.execute(
                "SELECT votes.id, shown.id FROM votes JOIN shown ON shown.id = votes.shown "
                "WHERE shown.annotator = ? AND withdrawn = 0 ORDER BY votes.id DESC LIMIT 1",
                (annotator.id,),
            ).fetchone()
            if row is None:
                return None
            vote, shown = row
            # what was given out after it goes back, so that it comes again later
            self._return(connection, "annotator = ? AND state = 'open'", (annotator.id,))
            connection.execute("UPDATE votes SET withdrawn = 1 WHERE id = ?", (vote,))
            connection.execute("UPDATE shown SET state = 'open', at = ? WHERE id = ?", (time.time(), shown))
            return self._shown(connection, annotator, shown)

    def picture(self, number: int) -> Path | None:
        """The file of a picture; None for a number that is not there."""
        with self._turn:
            row = self._connection.execute("SELECT file FROM pictures WHERE id = ?", (number,)).fetchone()
        return None if row is None else self.folder / row[0]

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        """Answers of a query that changes nothing."""
        with self._turn:
            return self._connection.execute(query, tuple(values)).fetchall()

    # --- within one transaction -------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _give(self, connection: sqlite3.Connection, annotator: Annotator) -> int | None:
        """A new pair for somebody: a known one when it is time, else the one that fewest have."""
        done = self._done(connection, annotator)
        pair = None
        if self.settings.gold_every and (done + 1) % self.settings.gold_every == 0:
            pair = self._fresh(connection, annotator, "gold IS NOT NULL", ())
        if pair is None:
            pair = self._unjudged(connection, annotator)
        if pair is None:  # what others left lying
            stale = time.time() - _STALE
            self._return(connection, "state = 'open' AND at < ? AND annotator != ?", (stale, annotator.id))
            pair = self._unjudged(connection, annotator)
        if pair is None:
            return None
        connection.execute("UPDATE pairs SET given = given + 1 WHERE id = ?", (pair,))
        found = connection.execute(
            "INSERT INTO shown (annotator, pair, swapped, at, state) VALUES (?, ?, ?, ?, 'open') "
            "ON CONFLICT (annotator, pair) DO UPDATE SET state = 'open', at = excluded.at RETURNING id",
            (annotator.id, pair, self._swapped(annotator, pair), time.time()),
        ).fetchone()
        return int(found[0])

    def _unjudged(self, connection: sqlite3.Connection, annotator: Annotator) -> int | None:
        return self._fresh(connection, annotator, "gold IS NULL AND given < ?", (self.settings.overlap,))

    def _fresh(
        self, connection: sqlite3.Connection, annotator: Annotator, which: str, values: tuple[object, ...]
    ) -> int | None:
        row = connection.execute(
            f"SELECT id FROM pairs WHERE {which} AND id NOT IN ({_HAD}) ORDER BY given, id LIMIT 1",
            (*values, annotator.id),
        ).fetchone()
        return None if row is None else int(row[0])

    def _return(self, connection: sqlite3.Connection, which: str, values: tuple[object, ...]) -> None:
        """Let pairs that were shown and not judged be given again, to anybody."""
        connection.execute(
            f"UPDATE pairs SET given = given - 1 WHERE id IN (SELECT pair FROM shown WHERE {which})", values
        )
        connection.execute(f"UPDATE shown SET state = 'returned' WHERE {which}", values)

    def _shown(self, connection: sqlite3.Connection, annotator: Annotator, number: int) -> Shown:
        first, second, swapped, prompt = connection.execute(
            "SELECT pairs.first, pairs.second, swapped, prompt FROM shown JOIN pairs ON pairs.id = shown.pair "
            "JOIN pictures ON pictures.id = pairs.first WHERE shown.id = ?",
            (number,),
        ).fetchone()
        left, right = (second, first) if swapped else (first, second)
        (rest,) = connection.execute(
            f"SELECT COUNT(*) FROM pairs WHERE gold IS NULL AND given < ? AND id NOT IN ({_HAD})",
            (self.settings.overlap, annotator.id),
        ).fetchone()
        done = self._done(connection, annotator)
        return Shown(id=number, prompt=prompt, left=left, right=right, done=done, left_over=rest + 1)

    def _done(self, connection: sqlite3.Connection, annotator: Annotator) -> int:
        (done,) = connection.execute(
            "SELECT COUNT(*) FROM shown WHERE annotator = ? AND state = 'judged'", (annotator.id,)
        ).fetchone()
        return int(done)

    def _swapped(self, annotator: Annotator, pair: int) -> bool:
        """Whether the second picture is on the left: as good as a coin, and the same after a restart."""
        told = f"{self.settings.seed} {annotator.id} {pair}".encode()
        return bool(hashlib.blake2b(told, digest_size=1).digest()[0] & 1)


def _of_first(value: float, swapped: int) -> float:
    """What an answer about the left picture is worth for the first one of the pair."""
    return 1 - value if swapped else value


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
