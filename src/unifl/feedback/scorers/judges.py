"""Judges that are models which see and write, as they run in a `WorkerProcess`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unifl.feedback.scorers.prompts import require_prompts
from unifl.feedback.scorers.questions import Malformed, asked, rating
from unifl.feedback.scorers.vision_language import VisionLanguage, load_vision_language, require_plain

_TRIES = 3
_TOKENS = 4096  # as its authors; version 1 rates every element of the caption before its score


class Shows:
    """VQAScore: the probability that the answer to a question about picture and prompt is Yes.

    Args:
        language: The model.
        question: With `{prompt}`.
    """

    def __init__(self, language: VisionLanguage, question: str) -> None:
        self.language, self.question = language, question

    def __call__(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """Scores in [0, 1]."""
        questions = _questions(self.language, self.question, pictures, prompts)
        return self.language.next_word([[picture] for picture in pictures], questions, "Yes").tolist()


class Rates:
    """UnifiedReward: a rating in words, from 1 to 5.

    Args:
        language: The model.
        question: With `{prompt}`, for answers that `questions.rating` reads.
    """

    def __init__(self, language: VisionLanguage, question: str) -> None:
        self.language, self.question = language, question

    def __call__(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """Scores in [1, 5]; an answer that says none is drawn again.

        Raises:
            Malformed: None of the tries says one.
        """
        questions = _questions(self.language, self.question, pictures, prompts)
        found: dict[int, float] = {}
        last = ""
        for turn in range(_TRIES):
            left = [row for row in range(len(pictures)) if row not in found]
            if not left:
                break
            answers = self.language.answers(
                [[pictures[row]] for row in left], [questions[row] for row in left], tokens=_TOKENS, turn=turn
            )
            for row, answer in zip(left, answers, strict=True):
                try:
                    found[row] = rating(answer)
                except Malformed as error:
                    last = str(error)
        if len(found) < len(pictures):
            raise Malformed(
                f"{len(pictures) - len(found)} of {len(pictures)} answers say no score after {_TRIES} tries ({last}); "
                "see that the model is one that rates pictures"
            )
        return [found[row] for row in range(len(pictures))]


def build_shows(
    *, weights: str, base: str, revision: str | None, device: str, dtype: str = "auto", question: str
) -> Shows:
    """For a `WorkerProcess`.

    Raises:
        UserError: See `load_vision_language`.
    """
    return Shows(load_vision_language(weights, base, revision, device=device, dtype=dtype), question)


def build_rates(
    *, weights: str, base: str, revision: str | None, device: str, dtype: str = "auto", question: str
) -> Rates:
    """For a `WorkerProcess`.

    Raises:
        UserError: See `load_vision_language`.
    """
    return Rates(load_vision_language(weights, base, revision, device=device, dtype=dtype), question)


def _questions(
    language: VisionLanguage, question: str, pictures: Sequence[np.ndarray], prompts: Sequence[str]
) -> list[str]:
    """One per picture, once the prompts were looked at."""
    require_prompts(prompts, len(pictures))
    require_plain(prompts, language.tokenizer)
    return [asked(question, prompt) for prompt in prompts]
