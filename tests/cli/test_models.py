from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from unifl.metrics import read_result

JUDGE = ("--judge", "assembly_toy:Reader")


@pytest.fixture
def run(workspace, trained_workspace):
    """A trained LoRA."""
    return shutil.copytree(trained_workspace / "runs" / "refl", workspace / "runs" / "refl")


def _pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_generate_from_a_run_writes_pictures_rows_and_a_grid(run, workspace, unifl):
    result = unifl(
        "generate", run, "a cat", "--prompts", "prompts.txt", "--count", "2", "--out", "out", "--seed", "3"
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (workspace / "out/metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows[:3]] == ["00000_3.png", "00000_4.png", "00001_3.png"]
    assert len(rows) == 10
    assert rows[0]["prompt"] == "a cat"
    # the settings of the recipe, as nothing else was asked for
    assert (rows[0]["steps"], rows[0]["guidance"], rows[0]["spacing"]) == (2, 1.0, "trailing")
    assert _pixels(workspace / "out/00000_3.png").shape == (32, 32, 3)
    assert (workspace / "out/grid.png").exists()


def test_noise_is_paired_and_the_lora_changes_the_picture(run, workspace, unifl):
    for model, folder, extra in (
        (run, "trained", ()),
        (run / "checkpoint-2", "checkpoint", ()),
        ("tiny", "lora", ("--lora", run, "--guidance", "1")),
        ("tiny", "base", ("--guidance", "1")),
    ):
        settings = ("--steps", "2", "--spacing", "trailing", "--seed", "1")
        result = unifl("generate", model, "a cat", "--out", folder, *settings, *extra)
        assert result.exit_code == 0, result.output
    picture = {
        name: _pixels(workspace / name / "00000_1.png") for name in ("trained", "checkpoint", "lora", "base")
    }
    assert np.array_equal(picture["trained"], picture["checkpoint"])
    assert np.abs(picture["trained"] - picture["lora"]).max() <= 1
    assert np.abs(picture["trained"] - picture["base"]).max() > 1


def test_evaluate_compare_and_report(run, workspace, unifl):
    ask = ("--prompts", "prompts.txt", "--seeds", "2", *JUDGE)
    result = unifl("evaluate", "base=tiny@2", run, *ask, "--out", "figures")
    assert result.exit_code == 0, result.output
    found = read_result(workspace / "figures/result.json")
    assert list(found.models) == ["base@2", "refl@2"]
    assert found.models["base@2"].steps == 2
    assert found.models["base@2"].weights_sha256 != found.models["refl@2"].weights_sha256
    assert found.models["base@2"].metrics["overall"].n == 4
    (row,) = found.comparisons
    assert (row.a, row.b, row.judge) == ("refl@2", "base@2", "assembly_toy:Reader")
    assert (workspace / "figures/samples/refl@2/0.png").exists()
    assert "overall" in result.output

    stored = unifl("compare", "refl@2", "base@2", "--scores", "figures")
    assert stored.exit_code == 0, stored.output
    assert f"refl@2 wins {row.win:.1%} against base@2" in stored.output
    wrong = unifl("compare", "refl@3", "base@2", "--scores", "figures")
    assert wrong.exit_code == 2
    assert "no scores of 'refl@3'; there are: base@2, refl@2" in wrong.stderr
    nowhere = unifl("compare", "refl@2", "base@2", "--scores", "figurse")
    assert nowhere.exit_code == 2 and "there is no folder figurse" in nowhere.stderr

    (workspace / "other_judge.py").write_text("from assembly_toy import Reader as Other\n")
    alone = unifl(
        "evaluate", "base=tiny@2", *ask[:4], "--judge", "other_judge:Other",
        "--guidance", "3", "--spacing", "leading", "--out", "figures",
    )  # fmt: skip
    assert alone.exit_code == 0, alone.output
    assert "base@2" in alone.output and "refl@2" not in alone.output
    entry = read_result(workspace / "figures/result.json").models["base@2"]
    assert (entry.guidance, entry.spacing) == (3.0, "leading")
    mixed = unifl("compare", "refl@2", "base@2", "--scores", "figures")
    assert mixed.exit_code == 2
    assert "judged by assembly_toy:Reader and by other_judge:Other" in mixed.stderr

    page = unifl("report", "figures")
    assert page.exit_code == 0, page.output
    assert "refl@2" in (workspace / "figures/report.html").read_text()


def test_compare_draws_and_judges_two_models(run, workspace, unifl):
    result = unifl("compare", run, "tiny@2", "--prompts", "prompts.txt", *JUDGE)
    assert result.exit_code == 0, result.output
    assert "refl@2 wins" in result.output
    assert read_result(workspace / "runs/comparison/result.json").comparisons[0].b == "tiny@2"

    # what is printed is the pair that was asked for, whatever the folder holds
    again = ("--prompts", "prompts.txt", *JUDGE, "--reuse")
    back = unifl("compare", "tiny@2", run, *again)
    assert "tiny@2 wins" in back.output and "refl@2 wins" not in back.output
    forth = unifl("compare", run, "tiny@2", *again)
    assert "refl@2 wins" in forth.output and "tiny@2 wins" not in forth.output
    structure = unifl("compare", run, "tiny@2", *again, "--metric", "structure")
    assert "by structure)" in structure.output and "by overall)" in forth.output
    last = read_result(workspace / "runs/comparison/result.json").comparisons[-1]
    assert (last.a, last.metric) == ("refl@2", "structure")


def test_ctrl_c_says_how_to_go_on(workspace, unifl):
    (workspace / "stopping.py").write_text(
        "from assembly_toy import Reader\n"
        "class Stopping(Reader):\n"
        "    def __call__(self, images, prompts):\n"
        "        raise KeyboardInterrupt\n"
    )
    result = unifl("evaluate", "tiny@2", "--prompts", "prompts.txt", "--judge", "stopping:Stopping")
    assert result.exit_code == 130
    assert "interrupted; the same command with --reuse goes on where it was" in result.stderr


def test_a_run_is_reported_with_its_curves(run, unifl):
    result = unifl("report", run)
    assert result.exit_code == 0, result.output
    assert "reward" in (run / "report.html").read_text()


WRONG = {
    "no prompt": (("generate", "tiny"), "there is no prompt; write one after the model"),
    "no model": (("generate", "./gone", "a cat"), "no model at ./gone; check the path"),
    "wrong steps": (
        ("generate", "tiny", "a cat", "--steps", "2000", "--out", "out"),
        "num_steps is 2000; choose 1 to 1000",
    ),
    "no pictures of ours": (
        ("generate", "tiny", "a cat"),
        "pictures holds metadata.jsonl, and no generate.json",
    ),
    "wrong count": (("generate", "tiny", "a cat", "--count", "0"), "a count of at least 1"),
    "empty prompts": (("generate", "tiny", "--prompts", "empty.txt"), "empty.txt holds no prompt"),
    "no judge": (
        ("evaluate", "tiny", "--prompts", "prompts.txt", "--judge", "assembly_toy:red"),
        "'assembly_toy:red' is no judge",
    ),
    "foreign prompts": (
        ("evaluate", "tiny", "--prompts", "prompts.txt"),
        "'a red circle' is not a caption of the embedded world",
    ),
    "one name twice": (
        ("evaluate", "tiny@2", "tiny@2", "--prompts", "prompts.txt", *JUDGE),
        "two models are called 'tiny@2'; give them names",
    ),
    "stored scores": (
        (
            "compare",
            "a@2",
            "b@2",
            "--scores",
            "figures",
            "--judge",
            "assembly_toy:Reader",
            "--reuse",
            "-o",
            "x",
        ),
        "--out, --judge, --reuse cannot go with --scores",
    ),
    "no run": (("report", "gone"), "gone is not a folder; give the folder of a run"),
    "nothing to push": (("push", "gone", "me/mine"), "there is no folder gone"),
    "bad repository": (("push", "tiny", "mine"), "'mine' is no repository; write owner/name"),
    "no benchmark": (
        ("bench", "unfil"),
        "there is no benchmark 'unfil'; there are: unifl, rg-lcd, preference",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_clear_line(workspace, unifl, case):
    arguments, message = WRONG[case]
    result = unifl(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_proxy_is_pretrained_from_the_command_line(workspace, unifl):
    """Pictures are encoded once; what is written can be named in a recipe."""
    from unifl.feedback import load_proxy

    asked = (
        "--text",
        "hashed",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--held-out",
        "2",
        "--width",
        "16",
        "--depth",
        "1",
    )
    done = unifl("proxy", "tiny", "plain", "runs/proxy", *asked)
    assert done.exit_code == 0, done.output
    assert "of pairs found" in done.output and (workspace / "runs" / "proxy-cache" / "manifest.json").exists()
    assert load_proxy("runs/proxy").config.channels == 4
    again = unifl("proxy", "tiny", "plain", "runs/proxy", *asked)
    assert again.exit_code == 2 and "runs/proxy is not empty; name another folder" in again.output


def test_an_interrupted_generate_says_how_to_go_on(workspace, unifl, monkeypatch):
    from unifl.assembly import generate

    def stop(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "sample", stop)
        result = unifl("generate", "tiny", "a cat", "--steps", "1", "--out", "out")
    assert result.exit_code == 130
    assert "interrupted; what was drawn is kept; go on with: unifl" in result.stderr
    assert unifl("generate", "tiny", "a cat", "--steps", "1", "--out", "out").exit_code == 0
    again = unifl("generate", "tiny", "a cat", "--steps", "1", "--out", "out", "--guidance", "2")
    assert again.exit_code == 2 and "guidance 7.5 and not 2.0" in again.stderr
