from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from unifl.errors import FeedbackFailed, TrainingStopped, UserError
from unifl.feedback import BlackBoxFeedback, Feedback, JpegSize, require_gradient
from unifl.feedback.black_box import try_feedback

PROMPTS = ["a", "bcd"]


def images(b=2, side=16):
    return torch.rand(b, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_pictures_arrive_as_what_was_asked_for():
    pixels = images()
    seen = {}

    def look(kind):
        def score(pictures, prompts):
            seen[kind] = pictures
            assert prompts == PROMPTS and not torch.is_grad_enabled()
            return [1, 2]

        return BlackBoxFeedback(score, takes=kind)

    with torch.enable_grad():
        for kind in ("tensor", "numpy", "pil"):
            scores = look(kind)(pixels.clone().requires_grad_(), PROMPTS)
            assert scores.tolist() == [1.0, 2.0] and not scores.requires_grad
    assert torch.equal(seen["tensor"], pixels) and not seen["tensor"].requires_grad
    expected = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for row in range(2):
        assert seen["numpy"][row].dtype == np.uint8 and seen["numpy"][row].shape == (16, 16, 3)
        assert np.array_equal(seen["numpy"][row], expected[row])
        assert isinstance(seen["pil"][row], Image.Image)
        assert np.array_equal(np.asarray(seen["pil"][row]), expected[row])


def test_it_is_a_feedback_without_a_gradient():
    box = BlackBoxFeedback(lambda pictures: np.zeros(len(pictures)), name="zero", needs_prompt=False)
    assert isinstance(box, Feedback) and box.needs == frozenset()
    assert box(images(), PROMPTS).tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match="'zero', which has none"):
        require_gradient(box, method="ReFL")


class Flaky:
    """Fails a number of times."""

    def __init__(self, failures, error=None):
        self.failures, self.error, self.calls = failures, error or ConnectionError("no route"), 0

    def __call__(self, pictures, prompts):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return [0.5] * len(prompts)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_failure_is_tried_again_with_growing_pauses(monkeypatch, timeout):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    flaky = Flaky(3)
    box = BlackBoxFeedback(flaky, retries=3, backoff=0.5, timeout=timeout)
    assert box(images(), PROMPTS).tolist() == [0.5, 0.5]
    assert flaky.calls == 4 and pauses == [0.5, 1.0, 2.0]
    flaky = Flaky(3)
    box = BlackBoxFeedback(flaky, name="far", retries=2, backoff=0.5, timeout=timeout)
    with pytest.raises(FeedbackFailed, match=r"'far' gave no answer after 3 attempts \(ConnectionError: no"):
        box(images(), PROMPTS)
    assert flaky.calls == 3 and issubclass(FeedbackFailed, TrainingStopped)


def test_a_mistake_is_not_tried_again():
    flaky = Flaky(1, UserError("no such model"))
    with pytest.raises(UserError, match="no such model"):
        BlackBoxFeedback(flaky, backoff=0)(images(), PROMPTS)
    assert flaky.calls == 1


def test_a_mistake_in_the_middle_of_a_run_is_a_failure_at_which_it_is_saved():
    flaky = Flaky(1, UserError("the key has expired; set another"))
    box = BlackBoxFeedback(flaky, name="far", backoff=0)
    with pytest.raises(UserError):
        box(images(), PROMPTS)
    box(images(), PROMPTS)
    flaky.failures = flaky.calls + 1
    with pytest.raises(
        FeedbackFailed, match="'far' refuses what it is asked: the key has expired; set another"
    ):
        box(images(), PROMPTS)
    assert flaky.calls == 3 and box(images(), PROMPTS).tolist() == [0.5, 0.5]


def test_a_call_that_takes_too_long_is_left_alone():
    calls = []

    def slow(pictures, prompts):
        calls.append(len(calls))
        time.sleep(5 if len(calls) == 1 else 0)
        return [1.0, 2.0]

    started = time.perf_counter()
    assert BlackBoxFeedback(slow, timeout=0.2, retries=1, backoff=0)(images(), PROMPTS).tolist() == [1.0, 2.0]
    assert calls == [0, 1] and time.perf_counter() - started < 3
    with pytest.raises(
        FeedbackFailed, match=r"after 1 attempt \(TimeoutError: no answer within 0.1 s\)"
    ) as failed:
        BlackBoxFeedback(lambda pictures, prompts: time.sleep(5), timeout=0.1, retries=0)(images(), PROMPTS)
    assert time.perf_counter() - started < 4 and isinstance(failed.value.__cause__, TimeoutError)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            [1.0, 2.0, 3.0],
            r"shape \(3,\) for 2 pictures; it must return one finite number per picture, \(2,\)",
        ),
        (1.0, r"shape \(\)"),
        (torch.zeros(2, 1), r"shape \(2, 1\)"),
        ([0.0, float("nan")], "returned nan"),
        ([float("-inf"), 0.0], "returned -inf"),
        (["good", "bad"], "returned list, which are no numbers"),
        (None, "returned NoneType"),
    ],
)
def test_answers_that_are_not_one_finite_number_per_picture(answer, message):
    calls = []
    box = BlackBoxFeedback(lambda pictures, prompts: calls.append(1) or answer, name="odd")
    with pytest.raises(FeedbackFailed, match=message):
        box(images(), PROMPTS)
    assert len(calls) == 1
    with pytest.raises(FeedbackFailed, match="'odd'"):
        try_feedback(box, images())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"takes": "jpeg"}, "choose tensor, numpy or pil"),
        ({"timeout": 0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_settings_out_of_range(settings, message):
    # the type checker of the tests refuses the first before the code can
    with pytest.raises((UserError, TypeError), match=message if "takes" not in settings else None):
        BlackBoxFeedback(lambda pictures, prompts: [0.0], **settings)


def test_the_size_of_a_jpeg_is_that_of_its_file():
    flat, noisy = torch.full((3, 32, 32), 0.5), images(1, 32)[0]
    size = JpegSize()
    assert isinstance(size, Feedback) and size.needs == frozenset() and not size.differentiable
    scores = size(torch.stack([flat, noisy]), PROMPTS)
    for row, picture in enumerate((flat, noisy)):
        file = io.BytesIO()
        pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        assert float(scores[row]) == pytest.approx(-len(file.getvalue()) / 1000)
    assert float(scores[1]) < float(scores[0]) < 0
    assert float(JpegSize(20)(noisy[None], ["a"])) > float(scores[1])
    with pytest.raises(UserError, match="quality of a JPEG is 0"):
        JpegSize(0)
