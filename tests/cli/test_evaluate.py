"""`unifl evaluate` on suites, by scorers and by a detector."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unifl.feedback.networks import RewardNetwork, save_family
from unifl.metrics import read_result

sys.path.insert(0, str(Path(__file__).parents[1] / "feedback"))
sys.path.insert(0, str(Path(__file__).parents[1] / "feedback" / "features"))


@pytest.fixture
def suite(workspace):
    rows = ["a red circle\tShapes\tBasic", "a blue square\tShapes\tBasic", "a dog\tAnimals\tBasic"]
    (workspace / "parti.tsv").write_text("Prompt\tCategory\tChallenge\n" + "\n".join(rows) + "\n")
    return "parti.tsv"


def test_a_suite_is_scored_by_category_and_three_models_are_ranked(workspace, unifl, suite):
    result = unifl(
        "evaluate", "a=tiny@1", "b=tiny@2", "c=tiny@3", "--prompts", suite, "--score", "sharpness", "--score",
        "colour=colourfulness", "--seeds", "2", "--out", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = read_result(workspace / "out/result.json")
    metrics = found.models["a@1"].metrics
    assert set(metrics) >= {"sharpness", "colour", "sharpness/Shapes", "sharpness/Animals"}
    assert "overall" not in metrics and "diversity" not in metrics
    assert metrics["sharpness"].n == 3 and metrics["sharpness/Shapes"].n == 2
    mean = (metrics["sharpness/Shapes"].value + metrics["sharpness/Animals"].value) / 2
    assert metrics["sharpness/mean of groups"].value == pytest.approx(mean)
    assert [(row.a, row.metric) for row in found.comparisons] == [("b@2", "sharpness"), ("c@3", "sharpness")]
    assert {row.model for row in found.ranks} <= {"a@1", "b@2", "c@3"}
    assert (
        len(found.ranks) == 3 or "no ranks: " in result.output
    )  # a model that won everything has no strength
    assert unifl("report", "out").exit_code == 0
    page = (workspace / "out/report.html").read_text()
    assert "sharpness, Animals" in page
    pair = ("compare", "a@1", "b@2", "--scores", "out")
    without = unifl(*pair)
    assert (
        without.exit_code == 2
        and "a@1 has no overall; choose what decides by --metric: sharp" in without.stderr
    )
    assert unifl(*pair, "--metric", "sharpness").exit_code == 0


def test_one_prompt_alone_is_told_to_have_no_interval(workspace, unifl):
    for name, prompts in (("one.txt", "a circle"), ("two.txt", "a circle\na square")):
        (workspace / name).write_text(prompts)
        result = unifl(
            "evaluate", "tiny@1", "--prompts", name, "--score", "sharpness", "--seeds", "1", "--out", name[:3]
        )
        assert result.exit_code == 0, result.output
        assert ("one prompt says nothing of others" in " ".join(result.output.split())) == (name == "one.txt")


def test_an_evaluation_goes_on_with_the_batches_that_it_has(workspace, unifl, suite, monkeypatch):
    from unifl.assembly.evaluate import Candidate

    settings = ("--score", "sharpness", "--seeds", "2", "--batch-size", "1", "--out")
    arguments = ("evaluate", "tiny@1", "--prompts", suite, *settings)
    assert unifl(*arguments, "whole").exit_code == 0
    drawn, real = [], Candidate.draw

    def stops(candidate, prompts, *, seed, indices):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.append((seed, *indices))
        return real(candidate, prompts, seed=seed, indices=indices)

    monkeypatch.setattr(Candidate, "draw", stops)
    stopped = unifl(*arguments, "out")
    assert stopped.exit_code == 130 and "--reuse goes on where it was" in " ".join(stopped.output.split())
    again = []

    def goes_on(candidate, prompts, *, seed, indices):
        again.append((seed, *indices))
        return real(candidate, prompts, seed=seed, indices=indices)

    monkeypatch.setattr(Candidate, "draw", goes_on)
    assert unifl(*arguments, "out", "--reuse").exit_code == 0
    assert len(drawn) == 4 and not set(drawn) & set(again) and len(again) == 2
    results = [read_result(workspace / name / "result.json") for name in ("whole", "out")]
    assert results[0] == results[1]
    pictures = [sorted((workspace / name / "samples").rglob("*.png")) for name in ("whole", "out")]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]
    assert not list((workspace / "out").glob("parts/*"))
    again.clear()
    assert unifl(*arguments, "out", "--reuse").exit_code == 0 and again == []


def test_all_prompts_of_a_file_are_taken_unless_fewer_are_asked_for(workspace, unifl, monkeypatch):
    from unifl.assembly.evaluate import Candidate

    monkeypatch.setattr(Candidate, "draw", lambda of, prompts, **how: torch.rand(len(prompts), 3, 8, 8))
    (workspace / "many.txt").write_text("\n".join(f"a circle {i}" for i in range(520)))
    arguments = ("evaluate", "tiny@1", "--prompts", "many.txt", "--score", "colourfulness", "--seeds", "1")
    whole = unifl(*arguments, "--out", "whole")
    assert whole.exit_code == 0 and "of 520 prompts" not in whole.output
    some = unifl(*arguments, "--num-prompts", "3", "--out", "some")
    assert "3 of 520 prompts of many.txt" in some.output
    for folder, number in (("whole", 520), ("some", 3)):
        metrics = read_result(workspace / folder / "result.json").models["tiny@1"].metrics
        assert metrics["colourfulness"].n == number
    assert "must be at least 1" in unifl(*arguments, "--num-prompts", "0").output


@pytest.fixture
def drawn(monkeypatch):
    """The models that are drawn, one entry per batch."""
    from unifl.assembly.evaluate import Candidate

    seen, real = [], Candidate.draw
    monkeypatch.setattr(Candidate, "draw", lambda *given, **how: seen.append(1) or real(*given, **how))
    return seen


def test_other_weights_under_the_same_path_are_asked_again(workspace, unifl, suite, drawn):
    def save(seed):
        torch.manual_seed(seed)
        network = RewardNetwork()
        save_family(network.trunk, {"liked": network}, workspace / "mine")

    def value():
        found = unifl(
            "evaluate", "tiny@1", "--prompts", suite, "--score", "liked=mine", "--reuse", "--out", "o"
        )
        assert found.exit_code == 0, found.output
        return read_result(workspace / "o/result.json").models["tiny@1"].metrics["liked"].value

    save(0)
    first = value()
    drawn.clear()
    save(0)
    assert value() == first and not drawn
    save(1)
    assert value() != first and drawn


def test_a_suite_of_other_clauses_or_a_detector_of_other_weights_judges_again(workspace, unifl, drawn):
    from test_detectors import yolos

    def evaluate(count):
        row = {"tag": "counting", "include": [{"class": "circle", "count": count}], "prompt": "circles"}
        (workspace / "evaluation_metadata.jsonl").write_text(json.dumps(row))
        drawn.clear()
        found = unifl(
            "evaluate", "tiny@1", "--prompts", "evaluation_metadata.jsonl", "--detector", "detector",
            "--color-model", "world:palette", "--seeds", "1", "--reuse", "--out", "out",
        )  # fmt: skip
        assert found.exit_code == 0, found.output
        return len(drawn)

    (workspace / "detector").mkdir()
    yolos(workspace / "detector")
    assert evaluate(2) and not evaluate(2) and evaluate(3)
    weights = workspace / "detector/model.safetensors"
    state = {name: tensor + 0.01 for name, tensor in load_file(weights).items()}
    save_file(state, weights, {"format": "pt"})
    assert evaluate(3) and not evaluate(3)


def test_distances_to_a_folder_and_drift_from_the_first_model(workspace, unifl, suite, monkeypatch):
    from test_features import dinov2

    from unifl.assembly.evaluate import Candidate
    from unifl.feedback.features import PictureFeatures, open_features
    from unifl.metrics import frechet_distance, kernel_distance, prdc, vendi_score

    (workspace / "dino").mkdir()
    dinov2(workspace / "dino")
    (workspace / "real").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
            workspace / f"real/{i:02d}.png"
        )
    pictures, real = {}, Candidate.draw

    def kept(candidate, prompts, *, seed, indices):
        images = real(candidate, prompts, seed=seed, indices=indices)
        for index, image in zip(indices, images, strict=True):
            pictures[candidate.sampling.num_steps, index, seed] = image
        return images

    monkeypatch.setattr(Candidate, "draw", kept)
    arguments = (
        "evaluate",
        "a=tiny@1",
        "b=tiny@2",
        "--prompts",
        suite,
        "--score",
        "sharpness",
        "--seeds",
        "6",
    )
    arguments += ("--features", "dinov2=dino", "--out", "out", "--reuse")
    assert unifl(*arguments).exit_code == 0 and len(pictures) == 36
    pictures_of = {
        steps: torch.stack([pictures[steps, i, k] for i in range(3) for k in range(6)]) for steps in (1, 2)
    }
    pictures.clear()
    result = unifl(*arguments, "--reference", "real")
    assert result.exit_code == 0, result.output
    assert not pictures  # features were kept, so that distances can be asked for later
    see = open_features("dinov2", weights=str(workspace / "dino"))
    a, b = (see(pictures_of[steps]).double().numpy() for steps in (1, 2))
    files = [np.asarray(Image.open(workspace / f"real/{i:02d}.png")) for i in range(20)]
    y = see(torch.tensor(np.stack(files)).permute(0, 3, 1, 2) / 255).double().numpy()
    found = read_result(workspace / "out/result.json").models
    value = {name: one.value for name, one in found["b@2"].metrics.items()}
    rows = np.linspace(0, 19, 18).round().astype(int)
    expected = {
        "kid_real": kernel_distance(b, y),
        "frechet_real": frechet_distance(b, y[rows]),
        "recall_real": prdc(b, y).recall,
        "vendi": vendi_score(b),
        "vendi_real": vendi_score(y),
        "drift_features_from_a@1": np.linalg.norm(a - b, axis=1).mean(),
    }
    for name, one in expected.items():
        assert value[f"{name}_on_dinov2"] == pytest.approx(one, rel=1e-4), name
    assert (
        value["drift_features_from_a@1_on_dinov2"] > 0 and "drift_diversity_ratio_from_a@1_on_dinov2" in value
    )
    assert found["b@2"].metrics["drift_features_from_a@1_on_dinov2"].n == 3  # prompts
    assert not any(name.startswith("drift") for name in found["a@1"].metrics)
    assert "kid_real_on_dinov2" in found["a@1"].metrics and "cmmd_real_on_dinov2" in result.output
    monkeypatch.setattr(PictureFeatures, "__call__", lambda *_: pytest.fail("pictures were looked at again"))
    assert unifl(*arguments, "--reference", "real").exit_code == 0 and not pictures
    assert read_result(workspace / "out/result.json").models == found
    assert unifl("report", "out").exit_code == 0
    page = (workspace / "out/report.html").read_text()
    assert "Kernel distance, real on dinov2" in page and "Drift, from a@1 on dinov2" in page


def test_a_frechet_distance_of_few_pictures_is_left_out(workspace, unifl, suite):
    from test_features import dinov2

    (workspace / "dino").mkdir()
    dinov2(workspace / "dino")
    (workspace / "real").mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(workspace / f"real/{i}.png")
    arguments = (
        "evaluate",
        "tiny@1",
        "--prompts",
        suite,
        "--score",
        "sharpness",
        "--features",
        "dinov2=dino",
    )
    result = unifl(*arguments, "--reference", "real", "--seeds", "1", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "tiny@1: no frechet: 3 samples have no covariance of full rank in 16 dimensions" in result.output
    assert "set few" not in result.output and "they need more than" in result.output
    metrics = read_result(workspace / "out/result.json").models["tiny@1"].metrics
    assert "kid_real_on_dinov2" in metrics and "frechet_real_on_dinov2" not in metrics
    (workspace / "one.txt").write_text("a circle")
    alone = ("--prompts", "one.txt", "--seeds", "1", "--reference", "real")
    assert "ask for two prompts or seeds" in unifl(*arguments, *alone).output
    nothing = unifl(*arguments, "--reference", "nothing")
    assert nothing.exit_code == 2 and "there is no folder nothing" in nothing.output


def test_geneval_by_a_tiny_detector(workspace, unifl):
    from test_detectors import yolos

    (workspace / "detector").mkdir()
    yolos(workspace / "detector")
    rows = [
        {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
        {
            "tag": "colors",
            "include": [{"class": "square", "count": 1, "color": "red"}],
            "prompt": "a red square",
        },
    ]
    (workspace / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = ["evaluate", "tiny@1", "--prompts", "evaluation_metadata.jsonl"]
    without = unifl(*plain)
    assert without.exit_code == 2 and "--detector MODEL for those of GenEval" in " ".join(
        without.output.split()
    )
    assert not (workspace / "runs/evaluation").exists()
    arguments = [*plain, "--detector", "detector"]
    result = unifl(
        *arguments, "--color-model", "world:palette", "--seeds", "2", "--threshold", "0.05", "--out", "out"
    )
    assert result.exit_code == 0, result.output
    metrics = read_result(workspace / "out/result.json").models["tiny@1"].metrics
    assert set(metrics) == {"geneval", "geneval/single_object", "geneval/colors", "geneval/mean of groups"}
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in metrics.values())


def test_the_name_of_a_measurement_tells_what_it_depends_on():
    from unifl.assembly.readings import ReadingsRequest
    from unifl.assembly.resolve import named
    from unifl.evaluation.geneval import Thresholds

    def name(**settings):
        return ReadingsRequest(**settings).name

    assert name(scorers={"sharpness": named("sharpness")}) == "sharpness"
    assert name(scorers={"mine": named("sharpness")}) == "mine=scorer:sharpness"
    weights = {"hpsv2": named("hpsv2", weights="a.pt")}
    assert name(scorers=weights, features="dinov2") == "hpsv2 (weights a.pt) on dinov2"
    other = name(detector="d", thresholds=Thresholds(score=0.2))
    assert other.startswith("geneval(d, ") and other != name(detector="d")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--prompts", "parti.tsv", "--detector", "nothing/here/at/all"),
            "there is no checkpoint at nothing/here",
        ),
        (
            ("--prompts", "parti.tsv", "--suite", "drawbench", "--score", "sharpness"),
            "names no column 'prompts'",
        ),
        (("--prompts", "parti.tsv", "--suite", "parti", "--score", "sharpness"), "no suite format 'parti'"),
        (("--prompts", "parti.tsv", "--score", "overall=sharpness"), "cannot be called 'overall'"),
        (("--prompts", "parti.tsv", "--score", "shapness"), "no reward 'shapness'"),
        (
            ("--prompts", "parti.tsv", "--score", "hpsv3", "--question", "hpsv3=none.txt"),
            "the question in none.txt cannot be read",
        ),
        (("--prompts", "parti.tsv", "--score", "hpsv3"), "give the file as `question`"),
        (("--reference", "."), "--reference goes with --features"),
        (("--features", "dinov2"), "--features goes with --score or --detector"),
        (("--score", "sharpness", "--weights", "x=y"), "gives no scorer of sharpness a path"),
        (
            ("--prompts", "parti.tsv", "--score", "hpsv3", "--question", "hpsv3=parti.tsv"),
            "the question in parti.tsv lacks {prompt} and <|Reward|>",
        ),
        (
            ("--prompts", "parti.tsv", "--score", "sharpness", "--out", "parti.tsv/out"),
            "cannot write parti.tsv/out",
        ),
    ],
)
def test_wrong_use_is_one_line(workspace, unifl, suite, arguments, message):
    result = unifl("evaluate", "tiny@1", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
