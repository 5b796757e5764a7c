from __future__ import annotations

import threading

import pytest
import torch

from unifl.evaluation.guard import GoldJudge
from unifl.evaluation.judge import Judge
from unifl.evaluation.suite import evaluate_model, score_images
from unifl.guard import GoldGuardError, is_training_active, training_active

from .fakes import PROMPTS, PixelJudge, Sampler

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_gold_judge_answers_as_the_judge_inside():
    gold = GoldJudge(PixelJudge())
    assert isinstance(gold, Judge)
    with torch.no_grad():
        torch.testing.assert_close(gold(IMAGES, PROMPTS[:3]), PixelJudge()(IMAGES, PROMPTS[:3]))
        torch.testing.assert_close(gold.features(IMAGES), PixelJudge().features(IMAGES))


@pytest.mark.parametrize("use", [lambda g: g(IMAGES, PROMPTS[:3]), lambda g: g.features(IMAGES)])
def test_refuses_with_gradients_on(use):
    with pytest.raises(GoldGuardError, match="gradients on"):
        use(GoldJudge(PixelJudge()))


@pytest.mark.parametrize("use", [lambda g: g(IMAGES, PROMPTS[:3]), lambda g: g.features(IMAGES)])
def test_refuses_while_a_training_loop_is_active(use):
    with torch.no_grad(), training_active(), pytest.raises(GoldGuardError, match="training loop is active"):
        use(GoldJudge(PixelJudge()))


def test_evaluation_of_the_gold_judge_is_refused_between_training_steps():
    def loop():
        with training_active():
            yield 1

    gold, steps = GoldJudge(PixelJudge()), loop()
    next(steps)
    with pytest.raises(GoldGuardError, match="validation judge"):
        score_images(gold, IMAGES, PROMPTS[:3])
    with pytest.raises(GoldGuardError):
        evaluate_model(Sampler(), PROMPTS, gold)
    steps.close()
    assert score_images(gold, IMAGES, PROMPTS[:3]).prompts == tuple(PROMPTS[:3])


def test_training_nests_ends_on_errors_and_is_seen_by_other_threads():
    seen = []
    with pytest.raises(RuntimeError), training_active():
        with training_active():
            pass
        thread = threading.Thread(target=lambda: seen.append(is_training_active()))
        thread.start()
        thread.join()
        raise RuntimeError
    assert seen == [True]
    assert not is_training_active()
