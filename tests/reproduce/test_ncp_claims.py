"""The claims of NCP, decided from made-up scores in which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from unifl.reproduce.figures import Table
from unifl.reproduce.measure import METRICS, Workplace
from unifl.reproduce.ncp_claims import PAPER
from unifl.reproduce.ncp_trainings import (
    OBJECTIVES,
    SECONDS,
    SETTINGS,
    STEP_SECONDS,
    TUNINGS,
    cells,
    checkpoints_of,
    steps_of,
)
from unifl.reproduce.parts import Piece, Scores, by_name

PROMPTS, SEEDS = 60, 3
READ = (*METRICS, "validation", "high_frequency")
BASE = 0.5
BAD_CELLS = list(cells())[:3]


def made_up(**changes):
    """Every model is a little better than the base, NCP more so; `changes` sets means of overall by model or look."""
    rng = np.random.default_rng(0)
    told = {"ncp-random/end": 0.5}
    for setting in SETTINGS:
        names = setting.of("base", "ncp-dpo", "dpo-absolute", "ncp-dpo-absolute")
        told |= {f"{name}/end": value for name, value in zip(names, (BASE, 0.7, 0.66, 0.76), strict=True)}
    told |= {f"cpo-{cell}/end": 0.4 for cell in BAD_CELLS}
    for setting in TUNINGS:
        sft, ncp = setting.of("sft", "ncp-sft")
        told |= {f"{sft}/at-0.25": 0.5, f"{sft}/at-0.5": 0.52, f"{sft}/at-0.75": 0.55}
        told |= {f"{ncp}/at-0.25": 0.55, f"{ncp}/at-0.5": 0.65}
    told |= {name.replace("__", "/").replace("_", "-"): value for name, value in changes.items()}
    pieces = {}
    for training in PAPER.trainings():
        for seed in training.seeds(range(SEEDS)):
            looks = {}
            for look in training.looks:
                mean = told.get(f"{training.name}/{look.name}", 0.6)
                values = {m: rng.normal(0.5, 0.05, PROMPTS) for m in READ}
                values["overall"] = rng.normal(mean, 0.05, PROMPTS)
                values["validation"] = rng.normal(mean, 0.05, PROMPTS)
                looks[look.name] = Scores(values)
            pieces[training.name, seed] = Piece("made up", looks, {"training": 60.0, "judging": 30.0}, 1)
    return Table(pieces)


def verdict(claim, tmp_path, **changes):
    return PAPER.claims[claim](made_up(**changes), tmp_path)


def test_all_hold_where_the_scores_say_so(tmp_path):
    for claim in PAPER.claims:
        found = verdict(claim, tmp_path)
        assert found.claim.holds is True, claim
        assert found.claim.train_seeds == (1 if claim == "f" else SEEDS)


@pytest.mark.parametrize(
    ("claim", "changes"),
    [
        ("a", {"ncp_dpo_cosine__end": 0.6}),
        ("b", {"dpo_absolute_cosine__end": 0.5}),
        ("b", {"ncp_dpo_absolute_cosine__end": 0.6}),
        ("c", {f"ncp_cpo_{cell}__end": 0.4 for cell in BAD_CELLS}),
        ("d", {f"ncp_sft_cosine__at_{share}": 0.5 for share in (0.25, 0.5, 0.75)}),
        ("d", {f"ncp_sft_cosine__{look}": 0.5 for look in ("end", "at_0.25", "at_0.5", "at_0.75")}),
        ("e", {"ncp_random__end": 0.7}),
        ("f", {"once_kto__end": 0.5}),
    ],
)
def test_they_do_not_hold_where_one_condition_fails(claim, changes, tmp_path):
    found = {name.replace("_1e_", "_1e-").replace("_3e_", "_3e-"): value for name, value in changes.items()}
    assert verdict(claim, tmp_path, **found).claim.holds is False


def test_one_setting_decides_and_the_others_are_told(tmp_path):
    found = verdict("a", tmp_path, ncp_dpo__end=0.5, ncp_dpo_tight__end=0.5)
    assert found.claim.holds and found.rows[0].what.startswith("gold, cosine")
    assert found.notes.count("(the claim does not hold)") == 2 and found.notes.count("(the claim holds)") == 1
    seeds = [range(setting.first_seed, setting.first_seed + SEEDS) for setting in SETTINGS]
    assert len({seed for some in seeds for seed in some}) == SEEDS * len(
        SETTINGS
    )  # nobody has seen the others'


class Silent:
    """A judge that is never asked."""

    def features(self, images):
        raise AssertionError

    def __call__(self, images, prompts):
        raise AssertionError


def test_what_is_compared_differs_in_what_the_claim_is_about(tmp_path):
    place = Workplace(
        runs=tmp_path,
        results=tmp_path,
        judge=Silent(),
        trainings=dict(by_name(PAPER.trainings())),
        num_prompts=5,
    )

    def recipe(name):
        found = place.recipe(place.trainings[name], 0)
        found.output_dir = ""
        return found

    latent, ncp = recipe("dpo-cosine"), recipe("ncp-dpo-cosine")
    assert (latent.method.space.kind, ncp.method.space.kind) == ("latent", "ncp")
    for found, method in ((latent, "dpo"), (ncp, "ncp-dpo")):
        steps = found.training.max_train_steps
        assert steps == steps_of(method)
        assert steps * STEP_SECONDS[method] == pytest.approx(SECONDS, rel=0.05)  # equal time
        found.training.max_train_steps = found.training.checkpointing_steps = 0
        found.training.learning_rate = found.method.space = None
    assert latent == ncp
    everything, absolute = recipe("ncp-dpo"), recipe("ncp-dpo-absolute")
    assert absolute.data["pairs"].filters.absolute_winners
    assert absolute.data["pairs"].filters.latest_losers
    absolute.data["pairs"].filters = everything.data["pairs"].filters
    absolute.data["pairs"].encode = everything.data["pairs"].encode
    assert everything == absolute
    at = checkpoints_of("sft")
    assert at[1.0] == steps_of("sft") and all(step % at[0.25] == 0 for step in at.values())
    assert recipe("cpo-1e-3-100").method.objective.winner_weight == 100


def test_objectives_are_trained_once_and_named_in_recipes(tmp_path):
    once = [training for training in PAPER.trainings() if training.once]
    assert len(once) == len(OBJECTIVES) and all(training.seeds((0, 1, 2)) == (0,) for training in once)
    place = Workplace(
        runs=tmp_path,
        results=tmp_path,
        judge=Silent(),
        trainings=dict(by_name(PAPER.trainings())),
        num_prompts=5,
    )
    kinds = {training.name: place.recipe(training, 0).method.kind for training in once}
    assert kinds["once-kto"] == "kto" and kinds["once-reward-weighted"] == "reward_weighted"
    assert set(kinds.values()) == {"preference", "kto", "reward_weighted"}
