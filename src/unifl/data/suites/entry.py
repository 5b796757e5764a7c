"""What a suite is made of, and what every prompt is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unifl.errors import UserError

MAX_PROMPT = 10_000
"""Characters; the longest prompts of DPG-Bench have about a tenth of that."""
_MAX_FILE = 2**30  # bytes; the two million prompts of DiffusionDB have about a third of that


@dataclass(frozen=True)
class Wanted:
    """One clause of a GenEval prompt: so many objects of a kind, perhaps of a colour, perhaps somewhere.

    Attributes:
        kind: Class of the object.
        count: At least so many (of `exclude`: fewer).
        color: Of each of them, or None.
        position: ("left of", 0) is left of the objects of clause 0; or None.
    """

    kind: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Question:
    """One that DPG-Bench asks about a picture.

    Attributes:
        number: By which others of its prompt name it.
        text: For an answer of yes or no.
        after: Numbers of the questions without whose yes its own counts for nothing.
    """

    number: int
    text: str
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A prompt with what its suite says of it.

    Attributes:
        prompt: The text.
        group: Category, style or task, by which results are reported; None where the suite has none.
        include: Of GenEval: what has to be there.
        exclude: Of GenEval: what must not.
        questions: Of DPG-Bench's table, each behind those that it names.
    """

    prompt: str
    group: str | None = None
    include: tuple[Wanted, ...] = ()
    exclude: tuple[Wanted, ...] = ()
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Suite:
    """Prompts in the order of their files.

    Attributes:
        form: Which file format it came in.
        entries: The prompts.
    """

    form: str
    entries: tuple[Entry, ...]

    @property
    def prompts(self) -> list[str]:
        """The texts."""
        return [entry.prompt for entry in self.entries]

    @property
    def groups(self) -> list[str] | None:
        """The group of each prompt; None where the suite has none."""
        if all(entry.group is None for entry in self.entries):
            return None
        return [entry.group or "other" for entry in self.entries]

    def first(self, number: int) -> Suite:
        """At most so many prompts: the first of each group in turn, so that none is left out.

        Without groups these are the first of the file.
        """
        if number >= len(self.entries):
            return self
        places: dict[str | None, list[int]] = {}
        for place, entry in enumerate(self.entries):
            places.setdefault(entry.group, []).append(place)
        turns = ((turn, place) for of_group in places.values() for turn, place in enumerate(of_group))
        chosen = sorted(place for _, place in sorted(turns)[:number])
        return Suite(self.form, tuple(self.entries[place] for place in chosen))


def checked(prompt: object, place: str) -> str:
    """A prompt without surrounding blanks.

    Args:
        prompt: What stands where a prompt should.
        place: Such as "line 3 of file.tsv", for messages.

    Raises:
        UserError: No text, nothing but blanks, or text that is no prompt by its length.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{place} has no prompt; write one there, or remove the row")
    if len(prompt) > MAX_PROMPT:
        raise UserError(
            f"{place} has a prompt of {len(prompt):,} characters, and at most {MAX_PROMPT:,} are taken; text encoders "
            "read a few hundred, so look whether this is a prompt at all"
        )
    require_text(prompt, place)
    return prompt.strip()


def require_text(prompt: str, place: str) -> None:
    """Refuse what cannot be written as UTF-8: half of a character, as an argument in another encoding becomes.

    Raises:
        UserError: It cannot.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} is no text in UTF-8, as it has half of a character: {prompt[:60]!r}; mend or remove it"
        ) from error


def require_size(path: Path) -> None:
    """Refuse a file that is too large to be a list of prompts.

    Raises:
        UserError: It is.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > _MAX_FILE:
        raise UserError(
            f"{path} has {size / 2**20:.0f} MB, and lists of prompts are taken up to {_MAX_FILE // 2**20}; check that "
            "it is one"
        )


def suite(form: str, entries: Sequence[Entry], path: Path) -> Suite:
    """A suite that is not empty.

    Raises:
        UserError: It is.
    """
    if not entries:
        raise UserError(f"{path} holds no prompt; write at least one")
    return Suite(form, tuple(entries))
