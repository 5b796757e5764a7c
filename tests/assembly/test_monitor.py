"""The over-optimisation monitor: what it sees, when it ends a run, and that an interruption changes nothing."""

from __future__ import annotations

import io
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from assembly_toy import refl_recipe
from rich.console import Console

from unifl.assembly import run
from unifl.assembly.monitor import STOP, Monitor
from unifl.assembly.monitor_config import MonitorConfig, StopRule
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.errors import UserError
from unifl.evaluation import read_metrics, read_run_folder
from unifl.evaluation.report import render_report
from unifl.guard import is_training_active
from unifl.training.plan import Plan

WEIGHTS = "model/pytorch_lora_weights.safetensors"


def guarded(images, prompts):
    """1 where nothing could be fitted to it and the gold judge would refuse."""
    return torch.full((len(images),), float(is_training_active() and not torch.is_grad_enabled()))


def dice(images, prompts):
    return torch.rand(len(images))


def two_of_them(images, prompts):
    return images.mean((1, 2))


class OfLatents:
    name, space, differentiable, needs, range = "latent", "latent", True, frozenset(), None

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module", autouse=True)
def place():
    """The functions above can be named in recipes; runs do not measure first what they will cost, as others do."""
    free = Plan(1, 1, {}, {}, 0, {}, 0, {}, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "monitor_toy", sys.modules[__name__])
        patch.setattr(run, "plan", lambda *_, **__: free)
        yield


def _recipe(folder, changes=(), *, train=None, **monitor):
    """ReFL on a reward that high-frequency noise raises; the ratio passes 1.1 at step 6."""
    settings = {
        "every": 2,
        "prompts": "prompts.txt",
        "rewards": {"light": {"path": "assembly_toy:red_alone", "needs_prompt": False}},
        "stop": {"high_frequency_ratio": {"above": 1.1}},
    }
    recipe = refl_recipe(
        output_dir=str(folder),
        rewards={"red": {"path": "assembly_toy:checkered", "needs_prompt": False}},
        monitor=settings | monitor,
    )
    recipe["model"] |= {"train": train or {"kind": "lora", "rank": 4}}
    training = ["max_train_steps=10", "learning_rate=5e-2", "checkpointing_steps=4"]
    return load_recipe(recipe, [f"training.{change}" for change in training] + list(changes))


def _looks(folder):
    return {
        row["step"]: {key.removeprefix("monitor/"): row[key] for key in row if key.startswith("monitor/")}
        for row in read_metrics(folder / "metrics.jsonl")
        if "monitor/high_frequency" in row
    }


@pytest.fixture(scope="module")
def whole(finished_workspace, tmp_path_factory):
    """A run that the monitor ended, with what it told; not to be written to."""
    work = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(finished_workspace, work)
    before = os.getcwd()
    os.chdir(work)
    told = io.StringIO()
    try:
        rewards = {
            "light": {"path": "assembly_toy:red_alone", "needs_prompt": False},
            "guarded": "monitor_toy:guarded",
            "dice": "monitor_toy:dice",
        }
        result = run_recipe(
            _recipe(work / "run", rewards=rewards), progress=False, console=Console(file=told, width=200)
        )
    finally:
        os.chdir(before)
    return result, told.getvalue()


# --- an over-optimised run -------------------------------------------------------------------------------


def test_noise_that_the_reward_likes_shows_and_ends_the_run(whole):
    result, told = whole
    looks = _looks(result.folder)
    assert list(looks) == [0, 2, 4, 6]
    ratios = [look["high_frequency_ratio"] for look in looks.values()]
    assert ratios[0] == 1.0 and all(1 < ratio < 1.1 for ratio in ratios[1:3]) and ratios[3] > 1.1
    assert looks[6]["trained_change/red"] > 0.05
    assert looks[6]["diversity_ratio"] < 0.95  # every picture moves towards one pattern
    distances = [look["base_distance"] for look in looks.values()]
    assert distances[0] == 0 and distances == sorted(distances) and distances[3] > 0.02
    reason = f"high_frequency_ratio is {ratios[3]:.4g} at step 6, above its limit of 1.1"
    assert result.stopped == reason and f"ended by the monitor: {reason}" in told
    assert result.last.step == 6 and result.last.checkpoint == result.folder / "checkpoint-6"
    assert read_metrics(result.folder / "metrics.jsonl")[-1][STOP] == reason
    assert (result.folder / WEIGHTS).exists()
    assert f"The monitor ended the run early: {reason}" in (result.folder / "model/README.md").read_text()
    weights = "pytorch_lora_weights.safetensors"
    last = (result.folder / "checkpoint-6/model" / weights).read_bytes()
    assert (result.folder / "model" / weights).read_bytes() == last


def test_held_out_rewards_are_guarded_and_their_draws_are_the_same_at_every_look(whole):
    looks = _looks(whole[0].folder).values()
    assert {look["reward/guarded"] for look in looks} == {1.0}
    assert {look["reward_change/dice"] for look in looks} == {0.0}
    assert len({look["reward/light"] for look in looks}) == 4
    for look in looks:
        first = _looks(whole[0].folder)[0]["reward/light"]
        assert look["reward_change/light"] == pytest.approx(look["reward/light"] - first, abs=1e-12)


def test_the_report_draws_it_and_says_why_the_run_ended(whole):
    result, _ = whole
    page = render_report(read_run_folder(result.folder))
    section = page[page.index('<section id="monitor">') : page.index('<section id="curves">')]
    assert f"Ended by the monitor: {result.stopped}." in section
    for title in (
        "detail and diversity, ratios to the start",
        "distance from the start&#39;s pictures",
        "rewards that train, change from the start",
        "held-out rewards, change from the start",
    ):
        assert f'<div class="name">{title}</div>' in section
    assert section.count("<svg") == 4
    assert "monitor" not in page[page.index('<section id="curves">') :].split("<h2>Settings</h2>")[0]


def test_started_again_a_stopped_run_stays_as_it_is(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole[0].folder.parent)
    before = {p: p.read_bytes() for p in whole[0].folder.rglob("*") if p.is_file()}
    told = io.StringIO()
    again = run_recipe(whole[0].recipe, progress=False, console=Console(file=told, width=200))
    assert again.steps == 0 and again.stopped == whole[0].stopped and again.plan is None
    assert "complete already" in told.getvalue() and "ended by the monitor" in told.getvalue()
    after = {p: p.read_bytes() for p in whole[0].folder.rglob("*") if p.is_file()}
    assert after == before


def test_watching_changes_nothing_in_the_training(whole, workspace):
    changes = ["training.max_train_steps=6", "monitor=null"]
    folder = run_recipe(_recipe("runs/plain", changes), progress=False).folder
    assert (folder / WEIGHTS).read_bytes() == (whole[0].folder / WEIGHTS).read_bytes()


def test_the_plan_counts_the_networks_that_the_monitor_brings(workspace):
    rewards = {"net": "assembly_toy:RewardNet", "light": "assembly_toy:red"}
    built = run.assemble(_recipe("run", rewards=rewards))
    monitor = Monitor.of(built, workspace / "run", role="student")
    assert monitor is not None
    (network,) = monitor.held_out()["held-out rewards"]
    assert type(network).__name__ == "RewardNet"


# --- interruptions ---------------------------------------------------------------------------------------


class Died(Exception):
    pass


def _die_before_the_last_checkpoint(self, step, after=Monitor.after):
    after(self, step)
    if step == 6:
        raise Died


def _die_before_the_look_is_written(self, step, after=Monitor.after):
    if step == 4:  # the checkpoint of this step is there
        with self.log.open("a") as file:
            file.write('{"step": 4, "monitor/high')
        raise Died
    after(self, step)


@pytest.mark.parametrize("die", [_die_before_the_look_is_written, _die_before_the_last_checkpoint])
def test_an_interrupted_run_equals_an_uninterrupted_one_and_ends_where_it_does(
    whole, workspace, monkeypatch, die
):
    recipe = load_recipe(whole[0].folder / "config.yaml", ["output_dir=run"])
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(Monitor, "after", die)
        run_recipe(recipe, progress=False)
    result = run_recipe(recipe, progress=False)
    assert result.stopped == whole[0].stopped and result.last.step == 6
    for name in ("metrics.jsonl", WEIGHTS):
        assert (result.folder / name).read_bytes() == (whole[0].folder / name).read_bytes()


def test_a_run_whose_pictures_of_the_start_were_lost_draws_them_from_the_start(workspace):
    def recipe(folder):
        changes = ["training.ema_decay=0.5", "training.learning_rate=5e-3", "training.max_train_steps=4"]
        return _recipe(folder, [*changes, "training.checkpointing_steps=2"], train={"kind": "full"}, stop={})

    class Enough(Exception):
        pass

    def enough(result):
        if result.step == 3:
            raise Enough

    straight = run_recipe(recipe("runs/straight"), progress=False).folder
    with pytest.raises(Enough):
        run_recipe(recipe("runs/broken"), progress=False, on_step=enough)
    (workspace / "runs/broken/monitor/base.npz").write_bytes(b"half of it")
    broken = run_recipe(recipe("runs/broken"), progress=False).folder
    assert (broken / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    pictures = [np.load(folder / "monitor/base.npz")["pictures"] for folder in (straight, broken)]
    assert np.array_equal(*pictures) and pictures[0].shape == (8, 3, 32, 32)
    assert _looks(broken)[4]["base_distance"] > 0.01


def test_with_other_rules_a_stopped_run_goes_on(whole, workspace):
    shutil.copytree(whole[0].folder, "run")
    loose = load_recipe(
        "run/config.yaml",
        ["output_dir=run", "monitor.stop.high_frequency_ratio.above=9", "training.max_train_steps=8"],
    )
    with pytest.raises(UserError, match=r"monitor\.stop\.high_frequency_ratio\.above: 1\.1 -> 9"):
        run_recipe(loose, progress=False)
    with pytest.warns(UserWarning, match="settings differ"):
        result = run_recipe(loose, progress=False, resume="latest")
    assert result.stopped is None and result.last.step == 8
    assert list(_looks(result.folder)) == [0, 2, 4, 6, 8]
    assert "Ended by the monitor" not in render_report(read_run_folder(result.folder))


def test_a_run_that_was_begun_without_a_monitor_may_get_one(whole, workspace):
    run_recipe(_recipe("run", ["training.max_train_steps=2", "monitor=null"]), progress=False)
    recipe = _recipe("run", ["training.max_train_steps=4"], rewards={})
    with pytest.warns(UserWarning, match="settings differ"):
        found = _looks(run_recipe(recipe, progress=False, resume="latest").folder)
    expected = _looks(whole[0].folder)
    assert list(found) == [0, 2, 4]
    assert all(look == {key: expected[step][key] for key in look} for step, look in found.items())


def test_settings_that_a_newer_version_adds_as_null_do_not_refuse_a_run(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "config.yaml").write_text("training: {seed: 1}\n")
    settings = "training: {seed: 1}\nmonitor: null\n"
    assert run._resume_choice(tmp_path, settings) == "latest"
    with pytest.raises(UserError, match=r"monitor\.every: none -> 2"):
        run._resume_choice(tmp_path, settings.replace("null", "{every: 2}"))


# --- rules and settings ----------------------------------------------------------------------------------

SERIES = {0: 1.0, 10: 1.4, 20: 1.2, 30: 1.6, 40: 0.9}


@pytest.mark.parametrize(
    ("rule", "until", "broken"),
    [
        ({"above": 1.5}, 20, None),
        ({"above": 1.5}, 30, "m is 1.6 at step 30, above its limit of 1.5"),
        ({"above": 1.5}, 40, None),  # the look decides, not the past
        ({"above": 1.1, "patience": 3}, 20, None),
        (
            {"above": 1.1, "patience": 3},
            30,
            "m is 1.6 at step 30, above its limit of 1.1, at 3 looks in a row",
        ),
        ({"above": 1.1, "patience": 9}, 30, None),
        ({"below": 1.0}, 0, None),
        ({"below": 1.0}, 40, "m is 0.9 at step 40, below its limit of 1"),
        ({"fall": 0.19}, 20, "m is 1.2 at step 20, more than 0.19 below its best of 1.4 at step 10"),
        ({"fall": 0.21}, 20, None),
        ({"fall": 0.3}, 40, "m is 0.9 at step 40, more than 0.3 below its best of 1.6 at step 30"),
        ({"fall": 0.1, "patience": 2}, 40, None),  # a new best in between
    ],
)
def test_a_rule_is_broken_at_the_look_at_which_it_has_to_be(rule, until, broken):
    values = {step: value for step, value in SERIES.items() if step <= until}
    assert StopRule(**rule).broken_by("m", values) == broken


def test_the_log_is_named_as_the_settings_say(whole):
    config = whole[0].recipe.monitor
    assert set(config.metrics(["red"])) == set(_looks(whole[0].folder)[2])
    alone = MonitorConfig(seeds=1)
    assert alone.metrics([]) == ["high_frequency", "high_frequency_ratio", "base_distance"]


BAD = {
    "a metric that is not measured": (
        {"stop": {"high_frequency_ration": {"above": 2}}},
        "monitor.stop names 'high_frequency_ration', which the monitor does not measure; did you mean "
        "'high_frequency_ratio'?",
    ),
    "a reward that is not there": ({"stop": {"reward/lihgt": {"fall": 1}}}, "did you mean 'reward/light'?"),
    "two limits": (
        {"stop": {"base_distance": {"above": 1, "fall": 1}}},
        "has above and fall; give exactly one",
    ),
    "no limit": ({"stop": {"base_distance": {"patience": 2}}}, "has no limit; give exactly one"),
    "a limit alone": ({"stop": {"base_distance": 1.5}}, "monitor.stop.base_distance"),
    "a negative fall": (
        {"stop": {"reward/light": {"fall": -1}}},
        "fall of a stop rule is -1.0; it must be 0 or",
    ),
    "a limit that is none": ({"stop": {"base_distance": {"above": float("nan")}}}, "must be a finite number"),
    "no patience": ({"stop": {"base_distance": {"above": 1, "patience": 0}}}, "must be at least 1"),
    "diversity of one": (
        {"seeds": 1, "stop": {"diversity_ratio": {"below": 0.5}}},
        "monitor.stop names diversity_ratio, which needs monitor.seeds of 2 or more",
    ),
    "never": ({"every": 0}, "monitor.every is 0; it must be at least 1"),
    "a cut beyond": ({"cut": 1.5}, "monitor.cut is 1.5; it must lie between 0 and 1"),
    "gold": ({"rewards": {"best": "world:judges/gold"}}, "monitor.rewards.best is the gold judge"),
    "a reward that trains": (
        {"rewards": {"mine": {"path": "assembly_toy:checkered", "needs_prompt": False}}},
        "monitor.rewards.mine is the same as rewards.red, which trains; name a reward that does not",
    ),
    "an unknown key": ({"reward": {}}, "unknown key 'monitor.reward'; did you mean 'monitor.rewards'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_make_no_sense_are_told(case):
    changes, message = BAD[case]
    with pytest.raises(UserError) as error:
        _recipe("run", **changes)
    assert message in str(error.value)


REFUSED = {
    "a shape": (
        {"rewards": {"x": "monitor_toy:two_of_them"}},
        r"reward/x returned shape \(8, 32\) for 8 pictures",
    ),
    "nan": ({"rewards": {"x": "assembly_toy:not_a_number"}}, r"the reward reward/x returned NaN or infinity"),
    "latents": ({"rewards": {"x": "monitor_toy:OfLatents"}}, r"monitor\.rewards\.x reads latents"),
    "pictures": ({"prompts": "pictures"}, r"monitor\.prompts holds Sample rows where prompts are needed"),
    "no prompts": ({"prompts": "nothing"}, r"monitor: there is no file or folder nothing"),
    "a limit of the start": (
        {"stop": {"reward/light": {"above": 0.1, "patience": 3}}},
        r"reward/light of the start model is 0\.\d+, which is beyond monitor\.stop\.reward/light already",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_watched_is_refused_before_the_first_step(workspace, case):
    changes, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        run_recipe(
            _recipe("run", **({"stop": {}} | changes)),
            on_step=lambda _: pytest.fail("it trained"),
            progress=False,
        )
