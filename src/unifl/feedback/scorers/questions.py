"""What a model that sees and writes is asked about a picture, and how its answer becomes a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from unifl.errors import UserError

SHOWS = 'Does this figure show "{prompt}"? Please answer Yes or No.'
"""VQAScore's question (Lin et al., arXiv 2404.01291); the score is the probability of its first answer."""

ANSWERS = "{prompt} Please answer Yes or No."
"""For prompts that are questions themselves; the score is the same probability."""

RATES = (
    "This picture was generated for a caption. Rate it on three axes, each with a number from 1 (worst) to 5 (best):\n"
    "- Alignment: does it show what the caption says?\n"
    "- Coherence: is it free of glitches, broken shapes and contradictions?\n"
    "- Style: is it pleasant to look at, whatever the caption says?\n"
    "Answer with these three lines and nothing else:\n"
    "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n"
    "Caption: [{prompt}]"
)
"""In our words, for answers in the form that UnifiedReward 2.0 was trained to give (Wang et al., arXiv 2503.05236)."""

PREFERS = (
    "Both pictures were generated for the same caption. Which one fits the caption better and looks better?\n"
    "Answer with one line and nothing else: Image 1, Image 2, or Same.\n"
    "Caption: [{prompt}]"
)

_AXES = {"alignment", "coherence", "style"}
_SCORE = re.compile(r"(\w+) Score\s*(?:\(1-5\))?[\s*]*:[\s*]*(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_CHOICE = re.compile(r"\b(?:Image ([12])|(Same))\b", re.IGNORECASE)
Answers = Callable[[Sequence[Sequence[Any]], Sequence[str]], Sequence[str]]
"""Pictures of each question and the questions; an answer in words for each."""


class Malformed(ValueError):
    """An answer in words that says no number."""


def asked(question: str, prompt: str) -> str:
    """A question about one prompt; braces elsewhere stay as they are."""
    return question.replace("{prompt}", prompt)


def read_question(path: str | None, *, default: str, needs: Sequence[str] = ()) -> str:
    """A question from a text file.

    Args:
        path: The file; None is `default`.
        default: See above.
        needs: What it has to hold besides `{prompt}`.

    Raises:
        UserError: No such file, or one without its places.
    """
    if path is None:
        return default
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the question in {path} cannot be read ({error}); give a text file") from error
    lacking = [place for place in ("{prompt}", *needs) if place not in text]
    if lacking:
        raise UserError(
            f"the question in {path} lacks {' and '.join(lacking)}; write it where it belongs in the text"
        )
    return text


def rating(answer: str) -> float:
    """The final score of an answer, or the mean of alignment, coherence and style, in [1, 5].

    Raises:
        Malformed: It gives neither, or a number outside.
    """
    found = {axis.lower(): float(number) for axis, number in _SCORE.findall(answer)}
    if "final" in found:
        found = {"final": found["final"]}
    elif found.keys() >= _AXES:
        found = {axis: found[axis] for axis in _AXES}
    else:
        raise Malformed(f"no score from 1 to 5 in {answer[:200]!r}")
    if not all(1 <= number <= 5 for number in found.values()):
        raise Malformed(f"a score that is not from 1 to 5 in {answer[:200]!r}")
    return sum(found.values()) / len(found)


def choice(answer: str) -> Literal[1, 2] | None:
    """Which picture an answer prefers; None is neither.

    Raises:
        Malformed: It does not say, or says more than one thing.
    """
    found = {(number or same).lower() for number, same in _CHOICE.findall(answer)}
    if len(found) != 1:
        raise Malformed(f"no choice of Image 1, Image 2 or Same in {answer[:200]!r}")
    return {"1": 1, "2": 2, "same": None}[found.pop()]  # type: ignore[return-value]


def preferences(
    answers: Answers, first: Sequence[Any], second: Sequence[Any], prompts: Sequence[str]
) -> list[float]:
    """How often a model prefers the first picture of each pair: 1, 0 or 0.5, asked in both orders.

    Models favour a place, so a preference that does not survive the swap counts as none.

    Args:
        answers: Asks the model; raises where an answer stays malformed.
        first: Pictures.
        second: Pictures for the same prompts.
        prompts: One per pair.

    Raises:
        Malformed: An answer that is no choice.
    """
    questions = [asked(PREFERS, prompt) for prompt in prompts]
    straight = answers(list(zip(first, second, strict=True)), questions)
    swapped = answers(list(zip(second, first, strict=True)), questions)
    values = {1: 1.0, 2: 0.0, None: 0.5}
    pairs = [
        (values[choice(one)], 1 - values[choice(other)]) for one, other in zip(straight, swapped, strict=True)
    ]
    return [one if one == other else 0.5 for one, other in pairs]
