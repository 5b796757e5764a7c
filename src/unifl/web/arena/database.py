"""What an arena remembers, in one SQLite file: pictures, pairs, annotators, and every vote.

A vote is on the disk before it is acknowledged (write-ahead log, synchronous in full), so that a killed server loses
none. One process at a time may open an arena. Links of annotators carry tokens of which the file knows hashes alone.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from unifl.errors import UserError
from unifl.web.arena import people
from unifl.web.arena.file import cannot_write, connected, read_settings
from unifl.web.arena.giving import HAD, JUDGED, give, give_back
from unifl.web.arena.new import TakenVote, write_new
from unifl.web.arena.pairs import Candidate, PairPlan
from unifl.web.arena.people import Annotator, Tokens
from unifl.web.arena.settings import ArenaSettings

DATABASE = "arena.sqlite"
ANSWERS: Mapping[str, float] = {"left": 1.0, "same": 0.5, "right": 0.0}
"""What an annotator can say of an axis, and what it is worth for the picture on the left."""


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


class Arena:
    """An arena in a folder.

    Args:
        folder: With `arena.sqlite`, see `create`.
        look_only: Only read, which is allowed while a server has it open.

    Raises:
        UserError: No arena there, one of another version, a damaged file, or one that another process has open.
    """

    def __init__(self, folder: str | Path, *, look_only: bool = False) -> None:
        self.folder = Path(folder)
        path = self.folder / DATABASE
        if not path.is_file():
            raise UserError(
                f"{self.folder} holds no arena (no {DATABASE}); make one first, or check the path"
            )
        self._lock = _locked(self.folder, take=not look_only)
        try:
            self._connection = connected(path)
            self.settings = read_settings(self._connection, path)
            if look_only:
                self._connection.execute("PRAGMA query_only = ON")
        except BaseException:
            self._lock.release()
            raise
        self._turn = threading.Lock()
        self._tokens: Tokens | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        candidates: Sequence[Candidate],
        pairs: Sequence[PairPlan],
        settings: ArenaSettings | None = None,
        votes: Sequence[TakenVote] = (),
    ) -> Arena:
        """Make an arena and open it.

        Args:
            folder: Made if needed.
            candidates: Pictures.
            pairs: Comparisons, by the numbers of candidates, in the order in which they are given out.
            settings: What is asked.
            votes: That were made elsewhere, in their order; nobody judges a pair twice.

        Raises:
            UserError: There is an arena already, there are no pairs, or it cannot be written (a full disk).
        """
        path = Path(folder) / DATABASE
        if path.exists():
            raise UserError(f"{folder} holds an arena already; open it, or choose another folder")
        if not any(pair.gold is None for pair in pairs):
            raise UserError("an arena needs pairs whose answer is not known; there are none")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(path.parent)
        try:
            unfinished = path.with_suffix(".new")
            # a log that outlived its arena, as after a kill, would be replayed into this one
            for rest in (unfinished, *(path.with_name(DATABASE + end) for end in ("-wal", "-shm"))):
                rest.unlink(missing_ok=True)
            write_new(unfinished, candidates, pairs, settings or ArenaSettings(), votes)
            unfinished.rename(path)
        except sqlite3.OperationalError as error:
            raise cannot_write(path, error) from error
        finally:
            lock.release()
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
        with self._changing_tokens() as connection:
            return people.add_annotator(connection, name)

    def renew(self, name: str) -> str:
        """Another token for somebody, whose link so far opens nothing any more.

        Raises:
            UserError: Nobody of that name.
        """
        with self._changing_tokens() as connection:
            return people.renew(connection, name)

    def annotator(self, token: str) -> Annotator | None:
        """Whose link a token is; None for nobody's."""
        return self._known().annotator(token)

    def new_admin(self) -> str:
        """The token of the admin page; one that was there before opens nothing any more."""
        with self._changing_tokens() as connection:
            return people.new_admin(connection)

    def is_admin(self, token: str | None = None) -> bool:
        """Whether a token is that of the admin page; without one, whether there is any."""
        return self._known().is_admin(token)

    def _known(self) -> Tokens:
        found = self._tokens
        if found is None:
            with self._turn:
                found = self._tokens = Tokens.read(self._connection)
        return found

    @contextmanager
    def _changing_tokens(self) -> Iterator[sqlite3.Connection]:
        with self._writing() as connection:
            self._tokens = None  # who asks now waits for what is written
            yield connection

    # --- judging ----------------------------------------------------------------------------------------------

    def next(self, annotator: Annotator) -> Shown | None:
        """The pair to judge now: the one that is open, as after a reload, or a new one; None when all is done."""
        with self._writing() as connection:
            number = _open(connection, annotator)
            if number is None:
                number = give(connection, self.settings, annotator.id)
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

    def undo(self, annotator: Annotator, seen: int | None) -> Shown | None:
        """Take back the last vote, whose pair is open again.

        Args:
            annotator: Who.
            seen: The showing on the page where undo was pressed; None where nothing was left. Where another one is
                open, that page is behind, as after an answer that got lost, and nothing is taken back.

        Returns:
            The pair that is open then; None where there is no vote.
        """
        with self._writing() as connection:
            now = _open(connection, annotator)
            if now not in (None, seen):
                return self._shown(connection, annotator, now)
            row = connection.execute(
                "SELECT votes.id, shown.id FROM votes JOIN shown ON shown.id = votes.shown "
                "WHERE shown.annotator = ? AND withdrawn = 0 ORDER BY votes.id DESC LIMIT 1",
                (annotator.id,),
            ).fetchone()
            if row is None:
                return None
            vote, shown = row
            # what was given out after it goes back, so that it comes again later
            give_back(connection, "annotator = ? AND state = 'open'", (annotator.id,))
            connection.execute("UPDATE votes SET withdrawn = 1 WHERE id = ?", (vote,))
            connection.execute("UPDATE shown SET state = 'open', at = ? WHERE id = ?", (time.time(), shown))
            return self._shown(connection, annotator, shown)

    def picture(self, number: int) -> Path | None:
        """The file of a picture; None for a number that is not there."""
        found = self.rows("SELECT file FROM pictures WHERE id = ?", (number,))
        return self.folder / found[0][0] if found else None

    def judged(self, annotator: Annotator) -> int:
        """How many pairs somebody has judged."""
        return int(self.rows(JUDGED, (annotator.id,))[0][0])

    def side(self, annotator: Annotator, shown: int, right: bool) -> Path | None:
        """The file of one side of what was shown to somebody; None for what was not."""
        found = self.rows(
            "SELECT CASE WHEN swapped = ? THEN first ELSE second END FROM shown JOIN pairs ON pairs.id = pair "
            "WHERE shown.id = ? AND annotator = ?",
            (right, shown, annotator.id),
        )
        return self.picture(found[0][0]) if found else None

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
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite rolls back by itself on some full disks
                    self._connection.execute("ROLLBACK")
                raise

    def _shown(self, connection: sqlite3.Connection, annotator: Annotator, number: int) -> Shown:
        first, second, swapped, prompt = connection.execute(
            "SELECT pairs.first, pairs.second, swapped, prompt FROM shown JOIN pairs ON pairs.id = shown.pair "
            "JOIN pictures ON pictures.id = pairs.first WHERE shown.id = ?",
            (number,),
        ).fetchone()
        left, right = (second, first) if swapped else (first, second)
        (rest,) = connection.execute(
            f"SELECT COUNT(*) FROM pairs WHERE gold IS NULL AND given < ? AND id NOT IN ({HAD})",
            (self.settings.overlap, annotator.id),
        ).fetchone()
        (done,) = connection.execute(JUDGED, (annotator.id,)).fetchone()
        return Shown(id=number, prompt=prompt, left=left, right=right, done=done, left_over=rest + 1)


def _locked(folder: Path, *, take: bool = True) -> FileLock:
    """The lock of an arena, taken or not."""
    lock = FileLock(folder / ".arena.lock")
    try:
        if take:
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process has the arena in {folder} open; stop it first: two servers on one database would give "
            "out the same pairs"
        ) from None
    return lock


def _open(connection: sqlite3.Connection, annotator: Annotator) -> int | None:
    """What was shown to somebody and waits for their vote."""
    row = connection.execute(
        "SELECT id FROM shown WHERE annotator = ? AND state = 'open' ORDER BY id LIMIT 1", (annotator.id,)
    ).fetchone()
    return None if row is None else int(row[0])


def _of_first(value: float, swapped: int) -> float:
    """What an answer about the left picture is worth for the first one of the pair."""
    return 1 - value if swapped else value
