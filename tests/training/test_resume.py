"""Runs that are stopped, damaged and continued."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from training_toy import Toy, run_folder_bytes, save_toy, toy_config

from unifl.errors import UserError
from unifl.training import checkpoint
from unifl.training.config import OptimizerConfig
from unifl.training.loop import train
from unifl.training.statefile import load_state

CONFIG = {"preview_steps": 5, "grad_norm_steps": 3, "gradient_accumulation_steps": 2, "train_batch_size": 2}


def _run(folder, *, stop_after=None, resume=None, **changes):
    toy = Toy()
    steps = train(
        toy, toy_config(**(CONFIG | changes)), folder, save_model=save_toy(toy), resume_from_checkpoint=resume
    )
    for result in steps:
        if result.step == stop_after:
            steps.close()
            break
    return toy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    _run(folder)
    return folder


@pytest.mark.parametrize("stops", [(5,), (2, 4, 7), (11, 12)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, whole, stops):
    folder = tmp_path / "run"
    for stop in stops:
        _run(folder, stop_after=stop, resume="latest")
    toy = _run(folder, resume="latest")
    assert run_folder_bytes(folder) == run_folder_bytes(whole)
    assert toy.running["count"] == 48 and int(toy.discriminator.seen) == 48


@pytest.mark.parametrize("kind", ["adamw8bit", "adafactor", "muon_matrices", "training_toy:Pacing"])
def test_every_optimizer_resumes_exactly(tmp_path, kind):
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes")

    def run(folder, stop_after=None):
        toy = Toy(width=2048 if kind == "adamw8bit" else 16)  # smaller tensors keep 32-bit states
        name = kind
        if kind == "muon_matrices":
            name = "muon"
            toy.parameters["student"] = [p for p in toy.parameters["student"] if p.ndim == 2]
        config = toy_config(optimizers={"student": OptimizerConfig(kind=name)}, max_train_steps=6)
        steps = train(toy, config, folder, resume_from_checkpoint="latest")
        for result in steps:
            if result.step == stop_after:
                break
        steps.close()
        return toy

    run(tmp_path / "a", stop_after=5)
    resumed, straight = run(tmp_path / "a"), run(tmp_path / "b")
    assert torch.equal(resumed.generator.network[0].weight, straight.generator.network[0].weight)
    assert run_folder_bytes(tmp_path / "a") == run_folder_bytes(tmp_path / "b")


def test_a_damaged_checkpoint_is_skipped(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / "checkpoint-12" / "parameters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (folder / "checkpoint-8" / "optimizer-student.safetensors").unlink()
    with pytest.warns(UserWarning) as warned:
        _run(folder, resume="latest")
    messages = [str(warning.message) for warning in warned]
    assert any("checkpoint-12: parameters.safetensors has changed" in message for message in messages)
    assert any("checkpoint-8: it is incomplete" in message for message in messages)
    again = {name: data for name, data in run_folder_bytes(folder).items() if "abandoned" not in name}
    assert again == run_folder_bytes(whole)


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "checkpoint-8" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"checkpoint-8 is damaged: it is incomplete"):
        _run(folder, resume="checkpoint-8")
    with pytest.raises(UserError, match="there is no checkpoint checkpoint-9"):
        _run(folder, resume="checkpoint-9")


def test_going_back_to_an_older_checkpoint_sets_the_newer_ones_aside(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    _run(folder, resume=folder / "checkpoint-4", stop_after=6)
    assert checkpoint.latest_checkpoint(folder) == folder / "checkpoint-4"
    assert (folder / "abandoned-checkpoint-12").is_dir()
    _run(folder, resume="latest")
    again = {name: data for name, data in run_folder_bytes(folder).items() if "abandoned" not in name}
    assert again == run_folder_bytes(whole)


def _run_that_ends(folder, last):
    toy = Toy()
    steps = train(
        toy,
        toy_config(**CONFIG),
        folder,
        save_model=save_toy(toy),
        ends=lambda step: step == last,
        resume_from_checkpoint="latest",
    )
    return list(steps)


@pytest.mark.parametrize("last", [4, 6])  # where a checkpoint is due, and where none is
def test_a_run_that_ends_early_leaves_what_a_complete_one_leaves(tmp_path, whole, last):
    folder = tmp_path / "run"
    results = _run_that_ends(folder, last)
    assert [result.step for result in results] == list(range(1, last + 1))
    assert results[-1].checkpoint == folder / f"checkpoint-{last}"
    assert (folder / "model/net.pt").read_bytes() == (folder / f"checkpoint-{last}/model/net.pt").read_bytes()
    before = run_folder_bytes(folder)
    assert _run_that_ends(folder, last) == []
    assert run_folder_bytes(folder) == before
    _run_that_ends(folder, None)  # it may go on after all
    again = {name: data for name, data in run_folder_bytes(folder).items() if "abandoned" not in name}
    assert again == run_folder_bytes(whole)


ENDS = {
    "extended": ({"max_train_steps": 14}, "latest"),
    "shortened": ({"max_train_steps": 8}, "checkpoint-8"),
    "gone back": ({"learning_rate": 0.01}, "checkpoint-8"),
    "done again": ({"learning_rate": 0.01}, "latest"),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_final_model_is_that_of_the_new_end(tmp_path, whole, case):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    changes, resume = ENDS[case]
    if case == "done again":
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)
    if case != "shortened":
        _run(folder, resume=resume, stop_after=9 if resume == "checkpoint-8" else 13, **changes)
        assert (
            case == "done again" or not (folder / "model").exists()
        )  # the old one is not taken for it meanwhile
        resume = "latest"
    _run(folder, resume=resume, **changes)
    new = (folder / "model" / "net.pt").read_bytes()
    assert new == (checkpoint.latest_checkpoint(folder) / "model" / "net.pt").read_bytes()
    old = (whole / "model" / "net.pt").read_bytes()
    assert new != old and (folder / "abandoned-model" / "net.pt").read_bytes() == old


def test_a_model_of_the_same_end_stays(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    _run(folder, resume="latest")
    assert run_folder_bytes(folder) == run_folder_bytes(whole)


def _student_settings(folder, step):
    state = load_state(folder / f"checkpoint-{step}" / "optimizer-student.safetensors")
    return state["optimizer"]["param_groups"][0]


def test_changed_settings_of_an_optimizer_hold_from_the_first_resumed_step_on(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    toy = Toy()
    student = OptimizerConfig(learning_rate=1e-9, lr_scheduler="constant", kwargs={"betas": [0.5, 0.6]})
    optimizers = {**toy_config().optimizers, "student": student}
    config = toy_config(**CONFIG, optimizers=optimizers)
    steps = train(toy, config, folder, resume_from_checkpoint="checkpoint-8")
    before = toy.generator.network[0].weight.detach().clone()
    assert [result.learning_rates["student"] for result in steps] == [1e-9] * 4
    torch.testing.assert_close(toy.generator.network[0].weight, before, rtol=0, atol=1e-7)
    assert _student_settings(folder, 8)["betas"] == (0.9, 0.999)
    assert tuple(_student_settings(folder, 12)["betas"]) == (0.5, 0.6)


def test_a_setting_that_is_no_longer_given_goes_back_to_its_default(tmp_path):
    given = {"student": OptimizerConfig(kwargs={"weight_decay": 0.5})}
    _run(tmp_path, max_train_steps=4, optimizers=given)
    assert _student_settings(tmp_path, 4)["weight_decay"] == 0.5
    _run(tmp_path, max_train_steps=8, resume="latest", optimizers={})
    assert _student_settings(tmp_path, 8)["weight_decay"] == 0.01


def test_what_an_optimizer_keeps_in_its_groups_survives_a_changed_rate(tmp_path):
    for steps, rate in ((4, 0.02), (8, 0.01)):
        pacing = {"student": OptimizerConfig(kind="training_toy:Pacing", learning_rate=rate)}
        _run(tmp_path, max_train_steps=steps, resume="latest", optimizers=pacing)
    assert _student_settings(tmp_path, 8)["pace"] == pytest.approx(0.8**8)
    assert _student_settings(tmp_path, 8)["initial_lr"] == 0.01


def test_a_new_run_does_not_overwrite_an_old_one(whole):
    before = run_folder_bytes(whole)
    with pytest.raises(UserError, match="already holds checkpoints.*resume_from_checkpoint='latest'"):
        _run(whole)
    assert run_folder_bytes(whole) == before


def test_other_conditions_are_named(tmp_path, whole, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    now = checkpoint.environment() | {"threads": 7, "torch": "1.0"}
    monkeypatch.setattr(checkpoint, "environment", lambda: now)
    with pytest.warns(UserWarning) as warned:
        _run(folder, resume="latest", max_train_steps=13, learning_rate=0.5)
    text = " ".join(str(warning.message) for warning in warned)
    assert "threads 1 -> 7" in text and "-> 1.0" in text and "learning_rate: 0.5" in text


def test_a_checkpoint_of_another_model_is_refused(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    with pytest.raises(UserError, match=r"does not fit this model, first at 'net\.0\.weight'"):
        train(Toy(width=5), toy_config(**CONFIG), folder, resume_from_checkpoint="latest")
    with pytest.raises(UserError, match="checkpoint"):
        config = toy_config(**CONFIG, ema_decay=None, optimizers={"student": OptimizerConfig(kind="sgd")})
        train(Toy(), config, folder, resume_from_checkpoint="latest")
    with pytest.raises(
        UserError, match=r"'student' in the checkpoint .* does not fit: 'dampening'; resume with"
    ):
        optimizers = {**toy_config().optimizers, "student": OptimizerConfig(kind="sgd")}
        train(Toy(), toy_config(**CONFIG, optimizers=optimizers), folder, resume_from_checkpoint="latest")


def test_the_manifest_says_under_what_conditions(whole):
    manifest = json.loads((whole / "checkpoint-12" / "manifest.json").read_text())
    assert manifest["step"] == 12 and manifest["environment"]["threads"] == 1
    assert manifest["environment"]["torch"] == torch.__version__
    assert set(manifest["files"]) >= {"parameters.safetensors", "role-ema.safetensors", "model/net.pt"}


def test_limit_on_the_number_of_checkpoints(tmp_path):
    _run(tmp_path, checkpointing_steps=2, checkpoints_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]


def test_a_full_disk_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100))
    with pytest.raises(UserError, match="are needed and 100 bytes are free"):
        train(Toy(), toy_config(), tmp_path / "run")
