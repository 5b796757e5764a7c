from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unifl.errors import UserError
from unifl.evaluation.compare import change_in, compare_models, compare_tables, differences
from unifl.evaluation.model_result import Origin
from unifl.evaluation.suite import evaluate_model, judge_features

from .fakes import COUNTS, PROMPTS, PixelJudge, Sampler

REFERENCE = judge_features(PixelJudge(), torch.full((12, 3, 8, 8), 0.9))


def evaluate(gain, **options):
    settings = {"object_counts": COUNTS, "references": {"bright": REFERENCE}, "diversity_prompts": 6}
    return evaluate_model(Sampler(gain), PROMPTS, PixelJudge(), **(settings | options))


@pytest.fixture(scope="module")
def results():
    return {"base@4": evaluate(0.0), "better@4": evaluate(0.06)}


def test_a_constant_gain_wins_every_pair_because_noise_is_shared(results):
    outcome = compare_tables(results["better@4"].scores, results["base@4"].scores)
    assert (outcome.paired.wins, outcome.paired.rate.low) == (1.0, 1.0)
    structure = outcome.differences["structure"]
    assert structure.value == pytest.approx(0.06, abs=0.005)
    assert structure.excludes(0.0)
    # Without pairing the same gain drowns in the spread over prompts.
    assert not results["better@4"].metrics["structure"].excludes(results["base@4"].metrics["structure"].value)


def test_rows_mirror_when_the_models_are_swapped(results):
    rows = compare_models(results, [("better@4", "base@4"), ("base@4", "better@4")], judge="gold")
    assert rows[0].win == pytest.approx(1 - rows[1].win)
    assert (rows[0].judge, rows[0].metric, rows[0].n) == ("gold", "overall", 12)


def test_differences_cover_distances_and_diversity(results):
    found = differences(results["better@4"], results["base@4"])
    assert found.keys() == results["base@4"].metrics.keys()
    assert found["frechet_bright"].high < 0
    assert found["overall"].low > 0
    assert found["diversity"].value == pytest.approx(
        results["better@4"].metrics["diversity"].value - results["base@4"].metrics["diversity"].value
    )
    unchanged = differences(results["base@4"], results["base@4"])
    assert all((i.low, i.value, i.high) == (0, 0, 0) for i in unchanged.values())


def test_ratios(results):
    a, b = results["better@4"], results["base@4"]
    ratio = change_in("frechet_bright", a, b, kind="ratio")
    assert ratio.value == pytest.approx(a.metrics["frechet_bright"].value / b.metrics["frechet_bright"].value)
    assert ratio.low < ratio.value < ratio.high < 1
    assert change_in("diversity", a, b, kind="ratio").value == pytest.approx(
        np.mean(a.diversity) / np.mean(b.diversity)
    )
    assert change_in("structure", a, b, kind="ratio").low > 1


def test_only_the_same_prompts_seeds_and_sizes_compare(results):
    base = results["base@4"]
    with pytest.raises(UserError, match="seeds"):
        compare_tables(base.scores, evaluate(0.0, seeds=(7,)).scores)
    fewer = evaluate_model(Sampler(), PROMPTS[:6], PixelJudge(), diversity_prompts=0)
    with pytest.raises(UserError, match="different prompts"):
        compare_tables(base.scores, fewer.scores)
    with pytest.raises(UserError, match="12 and 8 samples"):
        change_in("frechet_bright", base, evaluate(0.0, references={"bright": REFERENCE[:8]}))
    with pytest.raises(UserError, match="diversity was measured on different prompts"):
        change_in("diversity", base, evaluate(0.0, diversity_prompts=3))


def test_scores_of_two_judges_do_not_compare(results):
    def judged(name, by, sees, behind=""):
        origin = Origin(judge=by, judge_sees={"bright": sees}, drawn={}, judge_fingerprint=behind)
        return replace(results[name], origin=origin)

    base, pair = judged("base@4", "gold", "0.5 0.1"), [("better@4", "base@4")]
    same = judged("better@4", "gold", "0.5 0.1")
    assert compare_models({"better@4": same, "base@4": base}, pair, judge="gold")[0].win == 1
    for other, message in (
        (judged("better@4", "validation", "0.5 0.1"), "judged by validation and by gold; evaluate both with"),
        (judged("better@4", "gold", "0.6 0.1"), "the judge gold or the references bright changed between"),
    ):
        with pytest.raises(UserError, match=message):
            compare_models({"better@4": other, "base@4": base}, pair, judge="gold")
        with pytest.raises(UserError, match=message):
            differences(other, base)
        with pytest.raises(UserError, match=message):
            change_in("structure", other, base)
    was, now = (judged("base@4", "gold", "0.5 0.1", behind) for behind in "ab")
    with pytest.raises(UserError, match="the judge gold changed between the two evaluations"):
        differences(now, was)
    assert differences(now, base).keys() == differences(now, now).keys()  # nobody has looked at base's judge


def test_unknown_models_and_metrics_are_named(results):
    with pytest.raises(UserError, match="no evaluated model 'other'"):
        compare_models(results, [("other", "base@4")], judge="gold")
    with pytest.raises(UserError, match="no metric 'beauty'"):
        compare_tables(results["base@4"].scores, results["base@4"].scores, metric="beauty")
