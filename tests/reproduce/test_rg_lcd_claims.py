"""The claims of RG-LCD, decided from made-up scores in which the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unifl.reproduce.figures import Table
from unifl.reproduce.measure import METRICS, Workplace
from unifl.reproduce.page import write_page
from unifl.reproduce.parts import Look, Piece, Scores, by_name
from unifl.reproduce.rg_lcd_claims import PAPER
from unifl.reproduce.unifl_trainings import trainings as unifl_trainings

PROMPTS, SEEDS, WIDTH = 100, 3, 6
READ = (*METRICS, "reward_detail", "reward_global", "high_frequency", "jpeg")
GOOD = {
    "teacher/steps-50": {"alignment": 0.9, "overall": 0.8},
    "teacher/steps-4": {"alignment": 0.6, "overall": 0.7, "far": 2.0},
    "lcd/steps-1": {"alignment": 0.7},
    "lcd/steps-2": {"alignment": 0.85},
    "lcd/steps-4": {"alignment": 0.85, "far": 0.2},
    "rg-lcd/steps-2": {"overall": 0.9},
}


def made_up(**changes):
    """Pieces around 0.5 with the shifts of `GOOD`; `far` moves the features away from the real ones."""
    rng = np.random.default_rng(0)
    told = GOOD | {name.replace("__", "/").replace("_", "-"): shift for name, shift in changes.items()}
    pieces = {}
    for training in PAPER.trainings():
        for seed in range(SEEDS):
            looks = {}
            for look in training.looks:
                means = told.get(f"{training.name}/{look.name}", {})
                values = {m: means.get(m, 0.5) + rng.normal(0, 0.05, PROMPTS) for m in READ}
                features = rng.normal(means.get("far", 0.0), 1.0, (PROMPTS, WIDTH))
                looks[look.name] = Scores(values, features)
            pieces[training.name, seed] = Piece("made up", looks, {"training": 60.0, "judging": 30.0}, 1)
    return Table(pieces)


def verdict(claim, tmp_path, **changes):
    return PAPER.claims[claim](made_up(**changes), tmp_path)


def test_both_hold_where_the_scores_say_so(tmp_path):
    for claim in PAPER.claims:
        finding = verdict(claim, tmp_path)
        assert finding.claim.holds is True
        assert (finding.claim.n, finding.claim.train_seeds) == (SEEDS * PROMPTS, SEEDS)


@pytest.mark.parametrize(
    ("claim", "changes"),
    [
        ("a", {"lcd__steps_2": {"alignment": 0.7}}),  # less than 0.85 of 0.9
        ("a", {"lcd__steps_1": {"alignment": 0.5}}),
        ("a", {"lcd__steps_4": {"alignment": 0.7, "far": 0.2}}),  # below the middle of 0.6 and 0.9
        (
            "a",
            {"lcd__steps_4": {"alignment": 0.85, "far": 1.9}},
        ),  # as far from real pictures as the teacher in 4
        ("b", {"rg_lcd__steps_2": {"overall": 0.79}}),
    ],
)
def test_they_do_not_hold_where_one_condition_fails(claim, changes, tmp_path):
    assert verdict(claim, tmp_path, **changes).claim.holds is False


def test_the_page_says_whose_it_is(tmp_path):
    table = made_up()
    findings = [decide(table, tmp_path) for decide in PAPER.claims.values()]
    page = write_page(tmp_path / "rg-lcd.md", PAPER.title, findings, table.pieces).read_text()
    assert page.startswith("# Latent consistency distillation") and "`unifl reproduce rg-lcd`" in page
    assert "25 times fewer evaluations" in page


class Silent:
    """A judge that is never asked."""

    def features(self, images):
        raise AssertionError

    def __call__(self, images, prompts):
        raise AssertionError


def test_trainings_have_recipes_and_differ_in_the_rewards_alone(tmp_path):
    place = Workplace(
        runs=tmp_path, results=tmp_path, judge=Silent(), trainings=dict(by_name(PAPER.trainings())), num_prompts=5,
        readings=PAPER.readings, keeps_features=True,
    )  # fmt: skip
    plain, guided = (place.recipe(place.trainings[name], 1) for name in ("lcd", "rg-lcd"))
    assert plain.training.seed == 1 and plain.method.rewards is None and guided.method.rewards.active
    plain.method.rewards = guided.method.rewards
    plain.rewards, plain.output_dir = guided.rewards, guided.output_dir
    assert plain == guided


def test_fields_that_came_later_make_no_piece_old():
    """What is at its default is not part of where scores come from."""
    training = next(training for training in unifl_trainings() if training.name == "style")
    said = json.loads(training.origin(0, prompts=5, settings=""))
    assert "first_seed" not in said and all("real" not in look for look in said["looks"])
    real = json.loads(PAPER.trainings()[0].origin(0, prompts=5, settings=""))
    assert real["looks"][0]["real"] is True and Look().real is False
