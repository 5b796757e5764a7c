"""DPG-Bench's score of a picture: which share of the questions about its prompt is answered with yes.

    s = mean_q prod_{p in q and those on which it depends} 1[P(yes | picture, p) > 0.5]

(Hu et al., arXiv 2403.05135; a question whose parent is denied counts as denied, as in their script and in DSG,
arXiv 2310.18235). The figures are ours, not the official ones: those are mPLUG-large's answers, on four pictures of a
prompt; here answers whoever is given. Their script leaves out the first row of the table, this does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data.suites import Question, Suite
from unifl.errors import UserError
from unifl.feedback import Feedback
from unifl.feedback.base import Space
from unifl.feedback.black_box import require_scores


class QuestionGraph:
    """Asks the questions of a suite, as a Feedback without gradient.

    Args:
        suite: DPG-Bench's table, whose entries have questions.
        answers: The probability of yes in [0, 1] for (pictures, questions): `open_scorer("vqascore", asks="answers")`,
            for one. It is asked about as many pictures at once as this is.

    Raises:
        UserError: A suite without questions, one prompt with two lists of them, or answers on another scale.
    """

    name: str = "dpg"
    space: Space = "pixel"
    differentiable: bool = False
    needs: frozenset[str] = frozenset({"prompt"})
    range: tuple[float, float] | None = (0.0, 1.0)

    def __init__(self, suite: Suite, answers: Feedback) -> None:
        if answers.range is None or answers.range[0] < 0 or answers.range[1] > 1:
            raise UserError(
                f"{answers.name} has the range {answers.range}, and questions are answered by a probability of yes in "
                "[0, 1]; give vqascore or chat with asks=answers, or say range=(0, 1) where that is so"
            )
        self.answers = answers
        self.questions: dict[str, tuple[Question, ...]] = {}
        for entry in suite.entries:
            if not entry.questions:
                raise UserError(
                    f"the prompt {entry.prompt[:100]!r} has no questions; give DPG-Bench's table with proposition_id, "
                    "dependency and question_natural_language"
                )
            if self.questions.setdefault(entry.prompt, entry.questions) != entry.questions:
                raise UserError(
                    f"the prompt {entry.prompt[:100]!r} comes with two lists of questions; keep one of them"
                )

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The share of its questions that holds for each picture.

        Raises:
            UserError: A prompt that the suite does not have.
        """
        lists = [self._of(prompt) for prompt in prompts]
        held: list[dict[int, bool]] = [{} for _ in lists]
        for turn in range(max(map(len, lists), default=0)):
            # what depends on something denied need not be asked
            rows = [
                row
                for row, questions in enumerate(lists)
                if turn < len(questions) and all(held[row][one] for one in questions[turn].after)
            ]
            yes = self._asked(images[rows], [lists[row][turn].text for row in rows]) if rows else []
            is_yes = dict(zip(rows, yes, strict=True))
            for row, questions in enumerate(lists):
                if turn < len(questions):
                    held[row][questions[turn].number] = is_yes.get(row, False)
        return images.new_tensor([sum(of.values()) / len(of) for of in held], dtype=torch.float32)

    def _of(self, prompt: str) -> tuple[Question, ...]:
        if prompt not in self.questions:
            raise UserError(f"the suite has no prompt {prompt[:100]!r}; draw pictures for its own prompts")
        return self.questions[prompt]

    def _asked(self, images: Float[Tensor, "b 3 h w"], questions: list[str]) -> list[bool]:
        found = require_scores(self.answers(images, questions), images, name=self.answers.name)
        return (found > 0.5).tolist()
