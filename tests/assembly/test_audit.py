"""The over-optimisation audit of runs on a tiny model: what it finds, that it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from assembly_toy import Reader, refl_recipe
from safetensors.torch import load_file, save_file

from unifl.assembly import audit as audits
from unifl.assembly import run
from unifl.assembly.audit import AuditRequest, audit_run
from unifl.assembly.audit_judges import _judge
from unifl.assembly.part import Part
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.errors import UserError
from unifl.evaluation.audit_look import AuditLook
from unifl.evaluation.overoptimisation import OVER_OPTIMISED, SOUND
from unifl.feedback.networks import RewardNetwork, save_family
from unifl.guard import is_training_active
from unifl.metrics.spectrum import high_frequency_share
from unifl.training.plan import Plan

SMALL = {"num_prompts": 4, "samples": 2, "kl_pictures": 2, "batch_size": 3}


def smooth(images, prompts):
    """The less fine detail, the better, which the chequered reward stands against."""
    return -high_frequency_share(images)


def lively(images, prompts):
    return -smooth(images, prompts)


def mute(images, prompts):
    return images.new_full((len(images),), 0.1)


class Strict(Reader):
    """A judge with an argument."""

    def __init__(self, below):
        self.below = below


def guarded(images, prompts):
    """Fails where the gold judge would answer."""
    assert is_training_active() and not torch.is_grad_enabled()
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module", autouse=True)
def place():
    """The functions above can be named; runs do not measure first what they will cost."""
    free = Plan(1, 1, {}, {}, 0, {}, 0, {}, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "audit_toy", sys.modules[__name__])
        patch.setattr(run, "plan", lambda *_, **__: free)
        yield


@pytest.fixture(scope="module")
def trained(finished_workspace, tmp_path_factory):
    """A run on a reward that high-frequency noise raises, with four checkpoints; not to be written to."""
    work = tmp_path_factory.mktemp("audited") / "work"
    shutil.copytree(finished_workspace, work)
    recipe = refl_recipe(
        output_dir="runs/refl",
        rewards={"red": {"path": "assembly_toy:checkered", "needs_prompt": False}},
        monitor={"every": 8, "prompts": "prompts.txt", "rewards": {"smooth": "audit_toy:smooth"}},
    )
    recipe["model"]["train"] = {"kind": "lora", "rank": 4}
    changes = [
        "max_train_steps=8",
        "learning_rate=5e-2",
        "checkpointing_steps=2",
        "checkpoints_total_limit=null",
    ]
    before = os.getcwd()
    os.chdir(work)
    try:
        run_recipe(load_recipe(recipe, [f"training.{change}" for change in changes]), progress=False)
    finally:
        os.chdir(before)
    return work


@pytest.fixture(scope="module")
def audited(trained):
    """The same with what its audit found; not to be written to."""
    before = os.getcwd()
    os.chdir(trained)
    try:
        return trained, _audit(trained)
    finally:
        os.chdir(before)


@pytest.fixture
def work(audited, tmp_path, monkeypatch):
    """A copy of its own for each test, which is the working folder meanwhile."""
    shutil.copytree(audited[0], tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def _audit(work, **changes):
    return audit_run(work / "runs/refl", AuditRequest(**(SMALL | changes)))


# --- what it finds ---------------------------------------------------------------------------------------


def test_noise_that_the_reward_likes_and_the_judge_does_not_is_over_optimisation(audited):
    found = audited[1]
    assert [row.name for row in found.checkpoints] == [
        "the start",
        *(f"checkpoint-{n}" for n in (2, 4, 6, 8)),
    ]
    assert found.outcome.verdict == OVER_OPTIMISED and found.outcome.keep < 4
    last = found.checkpoints[-1]
    assert last.reward.low > 0.3 and last.held_out.high < -0.1
    drifts, distances = ([getattr(row, name) for row in found.checkpoints] for name in ("drift", "distance"))
    assert drifts[0] == distances[0] == 0 and min(drifts[1:]) > 0 and distances == sorted(distances)
    assert last.ratios["high_frequency"] > 1 and last.ratios.keys() == {
        "high_frequency", "saturation", "diversity"
    }  # fmt: skip
    assert last.scores.keys() == {"reward/red", "held_out/smooth"}
    assert found.held_out_curve is not None and found.reward_curve is not None


def test_a_judge_that_likes_what_happens_finds_the_run_sound(work):
    found = _audit(work, judges={"lively": "audit_toy:lively"})
    assert found.outcome.verdict == SOUND and found.outcome.keep > 0
    assert "held_out/lively" in found.checkpoints[0].scores


def test_the_page_and_the_record_say_what_was_found(audited):
    work, found = audited
    page = (work / "runs/refl/audit/audit.html").read_text()
    record = json.loads((work / "runs/refl/audit/audit.json").read_text())
    assert record["outcome"]["reason"] == found.outcome.reason and found.outcome.reason in page
    assert record["outcome"]["verdict"] == OVER_OPTIMISED in page
    assert len(record["checkpoints"]) == 5 and record["schema_version"] == 1
    assert (
        page.count("<svg") >= 4
        and "data:image/png;base64," in page
        and "http" not in page.split("</style>")[1]
    )
    assert found.kept.name in page and "a red circle" in page


def test_a_judge_with_features_counts_by_its_overall_score_and_all_are_asked_as_if_something_trained(work):
    found = _audit(work, judges={"reader": "assembly_toy:Reader", "guarded": "audit_toy:guarded"})
    look = found.checkpoints[-1]
    model = work / "runs/refl/audit/looks/checkpoint-8.npz"
    with np.load(model) as file:
        pictures = torch.from_numpy(file["pictures"]).float() / 255
    light = Reader()(pictures, [])["structure"]
    assert look.scores["held_out/reader"] == pytest.approx(float(light.mean()), abs=2e-3)


# --- going on --------------------------------------------------------------------------------------------


def test_an_audit_that_was_interrupted_goes_on_and_finds_the_same(work, audited, monkeypatch):
    whole = audited[1]
    shutil.rmtree(work / "runs/refl/audit")
    real, calls = audits.sample, []

    def interrupting(*given, **options):
        calls.append(given)
        if len(calls) == 8:  # in the third model; a look takes three batches
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(audits, "sample", interrupting)
    with pytest.raises(KeyboardInterrupt):
        _audit(work)
    assert not (work / "runs/refl/audit/audit.json").exists()
    calls.clear()
    calls.extend([None] * 100)
    again = _audit(work)
    assert len(calls) == 100 + 3 * 3  # the start and the first checkpoint were there
    assert again == whole
    assert _audit(work) == whole and len(calls) == 109  # nothing was left to draw


def test_pictures_that_the_page_does_not_show_are_not_held(work, audited, monkeypatch):
    monkeypatch.setattr(audits, "STRIP", 1)
    monkeypatch.setattr(audits, "write_audit", lambda folder, findings, looks, **_: held.extend(looks))
    held = []
    assert _audit(work) == audited[1]
    shutil.rmtree(work / "runs/refl/audit/looks")
    assert _audit(work) == audited[1]
    assert {look.pictures.untyped_storage().nbytes() for look in held} == {2 * 3 * 32 * 32}


def test_only_what_has_changed_is_drawn_again(work, monkeypatch):
    real, calls = audits.sample, []
    monkeypatch.setattr(
        audits, "sample", lambda *given, **options: calls.append(1) or real(*given, **options)
    )
    (work / "runs/refl/audit/looks/checkpoint-4.npz").write_bytes(b"torn")
    _audit(work)
    assert len(calls) == 3
    shutil.rmtree(work / "runs/refl/checkpoint-6")
    assert len(_audit(work).checkpoints) == 4 and len(calls) == 3
    shutil.rmtree(work / "runs/refl/checkpoint-8")
    shutil.rmtree(work / "runs/refl/model")
    _audit(work, num_prompts=3)
    assert len(calls) == 3 + 3 * 2


def test_what_was_replaced_under_its_name_is_looked_at_again(work, monkeypatch):
    real, calls = audits.sample, []
    monkeypatch.setattr(
        audits, "sample", lambda *given, **options: calls.append(1) or real(*given, **options)
    )

    def drawn(**changes):
        calls.clear()
        _audit(work, num_prompts=2, samples=1, **changes)
        return len(calls)

    def save(seed):
        torch.manual_seed(seed)
        network = RewardNetwork()
        save_family(network.trunk, {"liked": network}, work / "rewards")

    for step in (2, 4, 6):
        shutil.rmtree(work / f"runs/refl/checkpoint-{step}")
    save(0)
    judges = {"liked": "rewards/liked"}
    assert drawn(judges=judges) == 2 and drawn(judges=judges) == 0
    save(1)
    assert drawn(judges=judges) == 2
    unet = next((work / "tiny/unet").glob("*.safetensors"))
    weights = load_file(unet)
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, unet, {"format": "pt"})
    assert drawn(judges=judges) == 2 and drawn(judges=judges) == 0


def test_a_look_survives_its_file_and_asks_what_it_depends_on(tmp_path):
    look = AuditLook(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {"path_kl": np.array([4.0, 14.0])})
    look.save(tmp_path / "look.npz", {"weights": "a"})
    again = AuditLook.load(tmp_path / "look.npz", {"weights": "a"})
    assert torch.equal(again.pictures, look.pictures) and again.drift == 3.0
    assert AuditLook.load(tmp_path / "look.npz", {"weights": "b"}) is None
    assert AuditLook.load(tmp_path / "other.npz", {"weights": "a"}) is None


# --- the finished model ----------------------------------------------------------------------------------


def test_a_finished_model_is_a_candidate_only_where_no_checkpoint_is_equal(work):
    run_folder = work / "runs/refl"
    shutil.rmtree(run_folder / "checkpoint-8")
    found = _audit(work)
    assert [row.name for row in found.checkpoints][-2:] == ["checkpoint-6", "model"]
    assert found.checkpoints[-1].step == 8


def test_a_damaged_checkpoint_is_left_out(work):
    (work / "runs/refl/checkpoint-4/model/pytorch_lora_weights.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="leaving out the damaged checkpoint"):
        found = _audit(work)
    assert "checkpoint-4" not in [row.name for row in found.checkpoints]


# --- what it refuses -------------------------------------------------------------------------------------


def _edit(folder, **changes):
    """Other settings of a run."""
    import yaml

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda run: shutil.rmtree(run), {}, "there is no folder"),
        (lambda run: (run / "config.yaml").unlink(), {}, "is not the folder of a run"),
        (
            lambda run: [shutil.rmtree(part) for part in (*run.glob("checkpoint-*"), run / "model")],
            {},
            "has no checkpoint to audit",
        ),
        (lambda run: _edit(run, rewards={}), {}, "followed no reward"),
        (lambda run: _edit(run, monitor=None), {}, "names no judge that is held out"),
        (
            lambda run: _edit(run, monitor=None),
            {"judges": {"smooth": "audit_toy:smooth"}},
            "neither validation nor a monitor",
        ),
        (
            lambda run: _edit(run, rewards={"red": {"path": "monitor_latents:Of"}}),
            {"judges": {"smooth": "audit_toy:smooth"}},
            "cannot import 'monitor_latents'",
        ),
        (lambda run: None, {"judges": {"gold": "world:judges/gold"}}, "is the gold judge"),
        (lambda run: None, {"judges": {"none": "audit_toy:nothing"}}, "audit_toy has no 'nothing'"),
        (lambda run: None, {"prompts": Path("missing.txt")}, "missing.txt"),
        (
            lambda run: (
                (run.parents[1] / "tiny").rename(run.parents[1] / "moved"),
                shutil.rmtree(run / "audit"),
            ),
            {},
            "the model that the run started from cannot be opened",
        ),
    ],
)
def test_what_cannot_be_audited_is_said_before_anything_is_drawn(work, monkeypatch, spoil, options, message):
    monkeypatch.setattr(audits, "sample", None)
    spoil(work / "runs/refl")
    with pytest.raises(UserError, match=message):
        _audit(work, **options)


def test_a_judge_that_trained_is_refused(work):
    _edit(work / "runs/refl", rewards={"red": "audit_toy:smooth"}, monitor=None)
    with pytest.raises(UserError, match="the judge mine is the reward red, which trained"):
        _audit(work, judges={"mine": "audit_toy:smooth"})
    _edit(work / "runs/refl", rewards={"red": {"path": "audit_toy:smooth", "needs_prompt": False}})
    with pytest.raises(UserError, match="the judge mine is the reward red, which trained"):
        _audit(work, judges={"mine": "audit_toy:smooth"})
    network = RewardNetwork()
    save_family(network.trunk, {"liked": network}, work / "rewards")
    shutil.copytree(work / "rewards", work / "copy")
    _edit(work / "runs/refl", rewards={"red": "rewards/liked"})
    with pytest.raises(UserError, match="the judge mine is the reward red, which trained"):
        _audit(work, judges={"mine": "copy/liked"})


def test_a_judge_without_an_opinion_is_told_before_checkpoints_are_drawn(work, monkeypatch):
    real, calls = audits.sample, []
    monkeypatch.setattr(
        audits, "sample", lambda *given, **options: calls.append(1) or real(*given, **options)
    )
    with pytest.raises(UserError, match="mute says the same of every picture of the start"):
        _audit(work, judges={"mute": "audit_toy:mute"})
    assert len(calls) == 3


def test_one_prompt_is_too_few(work):
    with pytest.raises(UserError, match="give two or more"):
        _audit(work, num_prompts=1)


def test_a_run_that_was_moved_is_audited_where_it_is(work):
    (work / "runs/refl").rename(work / "elsewhere")
    found = audit_run(work / "elsewhere", AuditRequest(**SMALL))
    assert found.outcome.verdict == OVER_OPTIMISED and (work / "elsewhere/audit/audit.json").is_file()


def test_numbers_below_one_are_refused():
    with pytest.raises(UserError, match="num_prompts of an audit is 0"):
        AuditRequest(num_prompts=0)


def test_a_judge_that_is_a_class_is_made_with_its_arguments(work):
    """A `Part` with and without them is a judge as a bare name is, and not a plain reward."""
    for part in (Part(path="assembly_toy:Reader"), Part(path="audit_toy:Strict", kwargs={"below": 0.5})):
        scorer, _ = _judge(part, "mine", "cpu")
        images = torch.full((2, 3, 8, 8), 0.4)
        assert scorer(images, ["a", "b"]).tolist() == pytest.approx([0.4, 0.4], abs=1e-6)
    with pytest.raises(UserError, match="cannot be called with {'above': 1}"):
        _judge(Part(path="audit_toy:Strict", kwargs={"above": 1}), "mine", "cpu")
