"""DPG-Bench's score, with answers that are known."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import pytest
import torch

from unifl.assembly import resolve
from unifl.data.suites import Entry, Question, Suite
from unifl.errors import UserError
from unifl.evaluation.dpg import QuestionGraph
from unifl.evaluation.readings import Readings
from unifl.feedback import as_feedback
from unifl.feedback.scorers import open_scorer
from unifl.feedback.scorers.questions import ANSWERS


class Known:
    """Says yes to what is written down for a picture, whose number is its brightness in 255ths."""

    def __init__(self, truths):
        self.truths, self.asked = truths, []

    def __call__(self, images, questions):
        assert len(images) == len(questions)
        numbers = (255 * images[:, 0, 0, 0]).round().int().tolist()
        self.asked.append(list(zip(numbers, questions, strict=True)))
        return torch.tensor([0.9 if self.truths[one] else 0.2 for one in self.asked[-1]])

    def feedback(self, range=(0.0, 1.0)):
        return as_feedback(self, name="known", range=range)


def pictures(*numbers):
    return torch.tensor(numbers).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255


def plainly(questions, says):
    """The published script's rule: parents that are denied, also for their own parents' sake, deny."""
    scores = {one.number: float(says(one)) for one in questions}
    for one in questions:
        if any(scores[parent] == 0 for parent in one.after):
            scores[one.number] = 0.0
    return sum(scores.values()) / len(scores)


def test_scores_are_the_published_rule_s_on_random_graphs():
    draw = random.Random(0)
    entries = []
    for number in range(12):
        questions = tuple(
            Question(at, f"{number}.{at}?", tuple(sorted(draw.sample(range(1, at), min(at - 1, at % 3)))))
            for at in range(1, draw.randint(2, 9))
        )
        entries.append(Entry(f"prompt {number}", questions=questions))
    truths = {
        (number, one.text): draw.random() < 0.7
        for number, entry in enumerate(entries)
        for one in entry.questions
    }
    known = Known(truths)
    judge = QuestionGraph(Suite("dpg", tuple(entries)), known.feedback())
    order = draw.sample(range(12), 12)
    found = judge(pictures(*order), [entries[number].prompt for number in order])
    wanted = [
        plainly(entries[number].questions, lambda one, n=number: truths[n, one.text]) for number in order
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))
    assert 3 < len(set(wanted))


def test_what_depends_on_something_denied_is_not_asked_and_batches_stay_as_large():
    questions = (
        Question(1, "cat?"),
        Question(2, "red?", (1,)),
        Question(3, "very red?", (2,)),
        Question(4, "dog?"),
    )
    suite = Suite("dpg", (Entry("a very red cat and a dog", questions=questions),))
    truths = {(number, one.text): (number, one.number) != (0, 1) for number in (0, 1) for one in questions}
    known = Known(truths)
    found = QuestionGraph(suite, known.feedback())(pictures(0, 1), ["a very red cat and a dog"] * 2)
    assert found.tolist() == [0.25, 1.0]
    assert known.asked == [
        [(0, "cat?"), (1, "cat?")],
        [(1, "red?")],
        [(1, "very red?")],
        [(0, "dog?"), (1, "dog?")],
    ]
    assert QuestionGraph(suite, known.feedback())(pictures(), []).shape == (0,)


def test_it_is_measured_like_any_scorer(monkeypatch):
    suite = Suite("dpg", (Entry("a cat", questions=(Question(1, "cat?"),)),))
    judge = QuestionGraph(suite, Known({(0, "cat?"): True, (1, "cat?"): False}).feedback())
    monkeypatch.setitem(sys.modules, "my_dpg", SimpleNamespace(judge=judge))
    assert resolve.feedback("my_dpg:judge", name="dpg") is judge
    found = Readings({"dpg": judge})(pictures(0, 1), ["a cat", "a cat"])
    assert found["dpg"].tolist() == [1.0, 0.0]


def test_what_cannot_be_asked_is_said_before_anything_is_drawn():
    asked, silent = Entry("a cat", questions=(Question(1, "cat?"),)), Entry("a dog")
    known = Known({})
    with pytest.raises(
        UserError, match="known has the range None, and questions are answered by a probability"
    ):
        QuestionGraph(Suite("dpg", (asked,)), known.feedback(range=None))
    with pytest.raises(UserError, match="the prompt 'a dog' has no questions; give DPG-Bench's table"):
        QuestionGraph(Suite("dpg", (asked, silent)), known.feedback())
    twice = Entry("a cat", questions=(Question(1, "one cat?"),))
    with pytest.raises(UserError, match="'a cat' comes with two lists of questions"):
        QuestionGraph(Suite("dpg", (asked, twice)), known.feedback())
    with pytest.raises(UserError, match="the suite has no prompt 'a cow'"):
        QuestionGraph(Suite("dpg", (asked,)), known.feedback())(pictures(0), ["a cow"])


def test_judges_take_prompts_that_are_questions():
    by_process = open_scorer("vqascore", asks="answers")
    by_service = open_scorer("chat", weights="m", base="http://127.0.0.1:1/v1", asks="answers")
    assert by_process.function.settings["question"] == by_service.function.question == ANSWERS
    assert by_process.range == by_service.range == (0.0, 1.0)
    with pytest.raises(UserError, match="asks is 'rates'; choose shows or answers"):
        open_scorer("vqascore", asks="rates")
