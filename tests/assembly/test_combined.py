"""Rewards that a recipe combines."""

from __future__ import annotations

import pytest
import torch
import yaml
from assembly_toy import RewardNet, red, refl_recipe

from unifl.assembly import audit_judges, resolve
from unifl.assembly.build import assemble
from unifl.assembly.fingerprint import fingerprint
from unifl.assembly.forecast import plan_recipe
from unifl.assembly.monitor_config import MonitorConfig
from unifl.assembly.part import Part
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.errors import UserError
from unifl.feedback.networks import RewardNetwork, SharedTrunk, save_family

PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NET = {"path": "assembly_toy:RewardNet", "kwargs": {"scale": 3.0}}
RED = "assembly_toy:red"
NEAR = {"path": "towards", "parts": {"of": RED}, "kwargs": {"target": 0.25}}


def opened(reward, **changes):
    """A reward as a recipe file holds it, through the recipe."""
    recipe = load_recipe(refl_recipe(rewards={"red": reward}, **changes))
    return resolve.rewards(recipe.rewards)["red"]


def test_combinations_of_a_recipe_are_those_of_python():
    reds, nets = red(PICTURES, []), 3 * RewardNet()(PICTURES, [])
    near = -(reds - 0.25).abs()
    both = {"red": RED, "net": NET}
    expected = {
        "weighted_sum": ({"weights": {"red": 2.0, "net": -0.5}}, 2 * reds - 0.5 * nets),
        "ensemble": ({"cautious": "least"}, torch.minimum(reds, nets)),
        "one_at_random": ({"weights": {"red": 3.0, "net": 1.0}}, 0.75 * reds + 0.25 * nets),
    }
    for name, (settings, scores) in expected.items():
        found = opened({"path": name, "parts": both, "kwargs": settings})
        torch.testing.assert_close(found(PICTURES, ["", ""]), scores, msg=name)
    for name, settings, scores in (
        ("towards", {"target": 0.25}, near),
        ("normalised", {"mean": 0.5, "std": 2.0}, (reds - 0.5) / 2),
        ("clipped", {"low": 0.0, "high": 0.4}, reds.clamp(0, 0.4)),
        ("calibrated", {"shift": 0.5, "scale": 0.1}, torch.sigmoid((reds - 0.5) / 0.1)),
    ):
        found = opened({"path": name, "parts": {"of": RED}, "kwargs": settings})
        torch.testing.assert_close(found(PICTURES, ["", ""]), scores, msg=name)
    inside = {"path": "ensemble", "parts": {"near": NEAR, "net": NET}}
    torch.testing.assert_close(opened(inside)(PICTURES, ["", ""]), (near + nets) / 2)


def test_a_run_follows_a_combination_and_overrides_reach_into_it(workspace):
    both = {
        "path": "one_at_random",
        "parts": {"near": NEAR, "net": NET},
        "kwargs": {"weights": {"near": 1.0, "net": 1.0}},
    }
    (workspace / "both.yaml").write_text(yaml.safe_dump(refl_recipe(rewards={"red": both})))
    recipe = load_recipe(workspace / "both.yaml", ["rewards.red.parts.near.kwargs.target=0.5"])
    assert recipe.rewards["red"].parts["near"].kwargs == {"target": 0.5}
    result = run_recipe(recipe, progress=False)
    assert len((result.folder / "metrics.jsonl").read_text().splitlines()) == 2
    network = assemble(recipe, device="cpu").rewards["red"].parts[1][0].network
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_parts_of_one_folder_share_its_trunk_and_a_plan_needs_none_of_them(workspace):
    trunk = SharedTrunk()
    save_family(trunk, {"a": RewardNetwork(trunk), "b": RewardNetwork(trunk)}, workspace / "both")
    cautious = {
        "path": "ensemble",
        "parts": {"a": "both/a", "b": "both/b"},
        "kwargs": {"cautious": "variance"},
    }
    first, second = opened(cautious).parts
    assert first.network.trunk is second.network.trunk
    cautious["parts"] = {"a": "nowhere/a", "b": "nowhere/b"}
    (workspace / "plan.yaml").write_text(yaml.safe_dump(refl_recipe(rewards={"red": cautious})))
    assert plan_recipe(workspace / "plan.yaml").plan.memory
    with pytest.raises(UserError, match="no reward 'nowhere/a'"):
        opened(cautious)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            {"path": "ensembl", "parts": {"a": RED}},
            "red has parts, and no combination is called 'ensembl'; did you mean",
        ),
        (
            NEAR | {"parts": {"a": RED, "b": RED}},
            "red: towards is of one reward, and parts has a, b; name one",
        ),
        (NEAR | {"kwargs": {"goal": 1}}, "red: towards cannot be made with {'goal': 1}: "),
        (
            NEAR | {"kwargs": {"target": "high"}},
            "red: towards cannot be made with {'target': 'high'}: could not conv",
        ),
        (
            {"path": "ensemble", "parts": {"a": RED}},
            "red: ensemble cannot be .*: an ensemble needs two or more feedbacks, got 1",
        ),
        (
            {"path": "weighted_sum", "parts": {"a": RED}, "kwargs": {"weights": {"b": 1.0}}},
            r"given for \['b'\]",
        ),
        ({"path": "weighted_sum", "parts": {"a": RED}, "kwargs": {"weights": [1.0]}}, "cannot be made with"),
        (
            NEAR | {"path": "calibrated", "kwargs": {"shift": 0, "scale": -1}},
            "scale is -1.0; it must be positive",
        ),
        ({"path": "ensemble", "parts": {"a": {"pth": RED}}}, "unknown key 'rewards.red.parts.a.pth'"),
    ],
)
def test_combinations_that_make_no_sense(reward, message):
    with pytest.raises(UserError, match=message):
        opened(reward)


def test_critics_are_not_combined():
    with pytest.raises(UserError, match=r"critics\.blur has parts; only rewards are combined"):
        resolve.critic(Part(path="ensemble", parts={"a": "assembly_toy:BlurCritic"}), name="blur")


def test_a_part_of_what_trains_is_not_held_out():
    recipe = load_recipe(refl_recipe(rewards={"red": {"path": "ensemble", "parts": {"a": NEAR, "b": NET}}}))
    trained = recipe.rewards
    with pytest.raises(
        UserError, match=r"monitor\.rewards\.mine shares a part with rewards\.red, which trains"
    ):
        MonitorConfig(rewards={"mine": RED}).check(trained)
    MonitorConfig(rewards={"mine": "assembly_toy:counted"}).check(trained)
    with pytest.raises(UserError, match="the judge mine is the reward red, which trained"):
        audit_judges._require_held_out({"mine": RED}, trained)
    audit_judges._require_held_out({"mine": "assembly_toy:counted"}, trained)


def test_a_combination_is_known_by_its_settings_and_its_parts():
    def print_of(**changes):
        part = Part(**{"path": "towards", "parts": {"of": RED}, "kwargs": {"target": 0.25}} | changes)
        return fingerprint(resolve.feedback(part, name="x"), part)

    other = Part(path="towards", parts={"of": RED}, kwargs={"target": 0.5})
    further = Part(path="towards", parts={"of": RED}, kwargs={"target": 0.75})
    same, *different = (
        print_of(),
        print_of(kwargs={"target": 0.5}),
        print_of(parts={"of": "assembly_toy:counted"}),
        print_of(path="normalised", kwargs={"mean": 0.0, "std": 1.0}),
        print_of(parts={"of": other}),
        print_of(parts={"of": further}),
    )
    assert same == print_of() and len({same, *different}) == 6
