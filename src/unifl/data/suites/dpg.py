"""The table of DPG-Bench (Hu et al., arXiv 2403.05135), which is that of DSG (Cho et al., arXiv 2310.18235) too.

A row per question: `item_id`, `text`, and, for who asks them, `proposition_id`, `dependency` and
`question_natural_language`. A dependency of 0 is none; others are numbers of the same item.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unifl.data.suites.entry import Entry, Question, checked
from unifl.data.suites.tables import columns, rows_of
from unifl.errors import UserError

_PROMPT = ("item_id", "text")
_QUESTION = ("proposition_id", "dependency", "question_natural_language")


def dpg_table(path: Path) -> list[Entry]:
    """A prompt per item, by the source in its name, with its questions where the table has their columns."""
    has_questions = set(_QUESTION) <= columns(path).keys()
    texts: dict[str, tuple[str, str]] = {}
    questions: dict[str, dict[int, Question]] = {}
    for place, row in rows_of(path, _PROMPT + (_QUESTION if has_questions else ())):
        item = str(row["item_id"])
        known = texts.setdefault(item, (row["text"], place))
        if known[0] != row["text"]:
            raise UserError(f"{place} has another text for {item} than {known[1]}; repair one of them")
        if has_questions:
            one, of_item = _question(row, place), questions.setdefault(item, {})
            if one.number in of_item:
                raise UserError(f"{place} has question {one.number} of {item} again; number each once")
            of_item[one.number] = one
    return [
        Entry(checked(text, place), dpg_group(item), questions=_in_order(questions.get(item, {}), item, path))
        for item, (text, place) in texts.items()
    ]


def dpg_group(item: str) -> str | None:
    """`partiprompts180` came from `partiprompts`; a mere number says nothing."""
    return re.sub(r"[\d_-]+$", "", item) or None


def _question(row: Mapping[str, Any], place: str) -> Question:
    number, *after = (str(row["proposition_id"]), *str(row["dependency"]).split(","))
    try:
        named = [int(one) for one in after]
        return Question(
            int(number),
            checked(row["question_natural_language"], place),
            tuple(sorted({one for one in named if one != 0})),
        )
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{place} has proposition_id {number!r} and dependency {row['dependency']!r}; write a whole number, and "
            "numbers between commas (0 for none)"
        ) from None


def _in_order(questions: Mapping[int, Question], item: str, path: Path) -> tuple[Question, ...]:
    """Every question behind those on which it depends."""
    found: dict[int, Question] = {}
    while len(found) < len(questions):
        ready = [
            one for one in questions.values() if one.number not in found and found.keys() >= {*one.after}
        ]
        if not ready:
            stuck = next(one for one in questions.values() if one.number not in found)
            raise UserError(
                f"question {stuck.number} of {item} in {path} depends on {', '.join(map(str, stuck.after))}, which "
                "cannot be asked before it: a number is missing, or they depend on each other; repair `dependency`"
            )
        found |= {one.number: one for one in ready}
    return tuple(found.values())
