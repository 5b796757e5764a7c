from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unifl.errors import UserError
from unifl.evaluation.model_result import ModelResult, Origin
from unifl.evaluation.scores import ScoreTable, build_table
from unifl.evaluation.suite import evaluate_model, judge_features, score_images
from unifl.metrics.frechet import frechet_distance

from .fakes import COUNTS, PROMPTS, PixelJudge, Sampler

JUDGE = PixelJudge()
REFERENCE = judge_features(JUDGE, torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def evaluate(gain=0.0, **options):
    settings = {"object_counts": COUNTS, "references": {"curated": REFERENCE}, "diversity_prompts": 4}
    return evaluate_model(Sampler(gain), PROMPTS, JUDGE, **(settings | options))


def test_scores_do_not_depend_on_the_batch_size():
    images = Sampler()(PROMPTS, seed=0, indices=list(range(12)))
    whole = score_images(JUDGE, images, PROMPTS)
    parts = score_images(JUDGE, images, PROMPTS, batch_size=5)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(values, parts.values[name])


def test_overall_is_the_mean_of_its_four_parts_and_subsets_split_alignment():
    images = Sampler()(PROMPTS, seed=0, indices=list(range(12)))
    table = score_images(JUDGE, images, PROMPTS, object_counts=COUNTS)
    parts = [table.values[n] for n in ("alignment_fraction", "structure", "style", "quality")]
    np.testing.assert_allclose(table.values["overall"], np.mean(parts, axis=0))
    two = table.per_prompt("alignment_two_object")
    assert np.isfinite(two).tolist() == [c == 2 for c in COUNTS]
    np.testing.assert_array_equal(two[1::3], table.per_prompt("alignment")[1::3])
    without_three = score_images(JUDGE, images, PROMPTS, object_counts=[1, 2] * 6)
    assert "alignment_three_object" not in without_three.values


def test_a_part_that_does_not_apply_is_left_out_of_overall():
    scores = {k: np.array([0.6]) for k in JUDGE(torch.zeros(1, 3, 8, 8), ["x"])}
    scores["style"] = np.array([np.nan])
    assert build_table(scores, ["x"], seed=0).values["overall"].item() == pytest.approx(0.6)


def test_every_metric_of_the_suite_is_there_with_an_interval():
    result = evaluate()
    expected = (
        "alignment alignment_one_object alignment_two_object alignment_three_object structure style color "
    )
    expected += "layout lighting detail quality overall frechet_curated kid_curated diversity"
    assert set(expected.split()) <= result.metrics.keys()
    for interval in result.metrics.values():
        assert interval.low <= interval.value <= interval.high
    assert result.metrics["overall"].n == 12
    assert result.metrics["alignment_one_object"].n == 4
    assert result.metrics["diversity"].n == 4
    assert result.metrics["frechet_curated"].n == 12
    assert result.previews.shape == (12, 3, 8, 8)


def test_noise_is_keyed_by_seed_and_index_and_gradients_are_off():
    sampler = Sampler()
    evaluate_model(
        sampler, PROMPTS, JUDGE, seeds=(3, 5), batch_size=8, diversity_prompts=3, diversity_seeds=4
    )
    drawn = [(seed, i) for seed, indices, _ in sampler.calls for i in indices]
    assert len(drawn) == len(set(drawn))  # nothing is drawn twice
    assert {i for seed, i in drawn if seed == 5} == set(range(12))
    assert [(seed, i) for seed, i in drawn if seed > 5] == [(s, i) for s in (6, 7) for i in (0, 5, 11)]
    assert not any(grad for _, _, grad in sampler.calls)


def test_batch_size_changes_nothing_and_equal_calls_are_equal():
    a, b = evaluate(batch_size=64), evaluate(batch_size=5)
    assert a.metrics.keys() == b.metrics.keys()
    for name, interval in a.metrics.items():
        other = b.metrics[name]
        assert (other.value, other.low, other.high) == pytest.approx(
            (interval.value, interval.low, interval.high)
        )


def test_frechet_uses_equal_n_and_all_seeds():
    result = evaluate(seeds=(0, 1), references={"small": REFERENCE[:20], "large": np.tile(REFERENCE, (2, 1))})
    assert result.metrics["frechet_small"].n == 20
    assert result.metrics["frechet_large"].n == 24
    rows = [Sampler()(PROMPTS, seed=s, indices=list(range(12))) for s in (0, 1)]
    own = judge_features(JUDGE, torch.cat(rows))
    expected = frechet_distance(own, np.tile(REFERENCE, (2, 1))[:24], few=True)
    assert result.metrics["frechet_large"].value == pytest.approx(expected)


def test_samples_of_a_prompt_are_resampled_together():
    class OnePicture(Sampler):  # every seed gives the same picture: a second seed brings no information
        def __call__(self, prompts, *, seed, indices):
            return super().__call__(prompts, seed=0, indices=indices)

    once = evaluate_model(OnePicture(), PROMPTS, JUDGE, diversity_prompts=0, references={"r": REFERENCE[:12]})
    twice = evaluate_model(
        OnePicture(),
        PROMPTS,
        JUDGE,
        seeds=(0, 1),
        diversity_prompts=0,
        references={"r": np.tile(REFERENCE[:12], (2, 1))},
    )
    for name in ("overall", "structure"):
        assert (twice.metrics[name].low, twice.metrics[name].high) == pytest.approx(
            (once.metrics[name].low, once.metrics[name].high)
        )
    assert twice.replicates["frechet_r"].std() == pytest.approx(once.replicates["frechet_r"].std(), rel=0.15)


def test_diversity_is_zero_for_a_model_that_ignores_its_noise():
    class Constant(Sampler):
        def __call__(self, prompts, *, seed, indices):
            return super().__call__(prompts, seed=0, indices=indices)

    result = evaluate_model(Constant(), PROMPTS, JUDGE, diversity_prompts=4)
    assert result.metrics["diversity"].value == pytest.approx(0, abs=1e-12)
    assert evaluate().metrics["diversity"].value > 0.1


def test_save_and_load(tmp_path):
    result = evaluate(seeds=(0, 1))
    loaded = ModelResult.load(result.save(tmp_path / "scores" / "m@4.npz"))
    assert loaded.metrics == result.metrics
    assert (loaded.scores.prompts, loaded.scores.seeds) == (result.scores.prompts, (0, 1))
    for name, values in result.scores.values.items():
        np.testing.assert_array_equal(loaded.scores.values[name], values)
    np.testing.assert_array_equal(loaded.replicates["kid_curated"], result.replicates["kid_curated"])
    assert loaded.origin is None
    origin = Origin(
        judge="gold", judge_sees={"curated": "0.5 0.1"}, drawn={"guidance": 1.5, "seeds": [0, 1], "x": None}
    )
    kept = replace(result, origin=origin).save(tmp_path / "scores" / "m@4.npz")
    assert ModelResult.load(kept).origin == origin
    whole, broken = kept.read_bytes(), tmp_path / "broken.npz"
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    for content in (
        b"no",
        whole[:-30],
        whole[:80] + b"\0" + whole[81:],
        (tmp_path / "other.npz").read_bytes(),
    ):
        broken.write_bytes(content)
        with pytest.raises(UserError, match="not a file of scores"):
            ModelResult.load(broken)


def test_progress_counts_every_picture():
    seen = []
    evaluate(batch_size=8, diversity_seeds=3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20, 20) and [d for d, _ in seen] == sorted(d for d, _ in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds must be different"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"diversity_seeds": 1}, "at least 2 seeds"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"object_counts": [1]}, "1 object counts for 12 prompts"),
    ],
)
def test_requests_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        evaluate(**options)
    with pytest.raises(UserError, match="no prompts"):
        evaluate_model(Sampler(), [], JUDGE)


class Careless(PixelJudge):
    """Breaks one promise of a judge."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, images, prompts):
        scores = super().__call__(images, prompts)
        if self.fault == "missing":
            del scores["structure"]
        elif self.fault == "column":
            scores["style"] = scores["style"][:, None]
        elif self.fault == "mean":
            scores["style"] = scores["style"].mean()
        elif self.fault == "infinite":
            scores["detail"] = scores["detail"] / 0
        return scores

    def features(self, images):
        found = super().features(images)
        flawed = {"flat": found[:, 0], "fewer": found[1:], "nan": found * float("nan")}
        return flawed.get(self.fault, found)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "the judge gave no structure; it must give alignment, "),
        (
            "column",
            r"the judge gave style of shape \(4, 1\) for 4 pictures; it must give one number per picture",
        ),
        ("mean", r"the judge gave style of shape \(\) for 4 pictures"),
        ("infinite", "the judge gave infinite values of detail"),
        ("flat", r"features of shape \(4,\) for 4 pictures; it must give one row per picture"),
        ("fewer", r"features of shape \(3, 12\) for 4 pictures"),
        ("nan", "features that are not finite"),
    ],
)
def test_a_judge_that_breaks_its_contract_is_noticed_at_the_first_batch(fault, message):
    sampler = Sampler()
    with pytest.raises(UserError, match=message):
        evaluate_model(sampler, PROMPTS, Careless(fault), batch_size=4)
    assert len(sampler.calls) == 1


def test_tables_of_different_prompts_cannot_be_joined():
    values = {"overall": np.zeros((1, 1))}
    with pytest.raises(UserError, match="same prompts"):
        ScoreTable.join([ScoreTable(("a",), (0,), values), ScoreTable(("b",), (1,), values)])
