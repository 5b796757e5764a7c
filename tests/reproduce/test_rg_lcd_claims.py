"""The claims of RG-LCD, decided from made-up scores in which the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unifl.reproduce.figures import Table
from unifl.reproduce.measure import METRICS, Workplace
from unifl.reproduce.page import write_page
from unifl.reproduce.parts import Look, Piece, Scores, by_name
from unifl.reproduce.proxy_claims import equal_reward
from unifl.reproduce.rg_lcd_claims import PAPER
from unifl.reproduce.rg_lcd_trainings import AGAIN_LENGTH, LENGTH
from unifl.reproduce.unifl_trainings import trainings as unifl_trainings

PROMPTS, SEEDS, WIDTH = 100, 3, 6
READ = (*METRICS, "reward_detail", "high_frequency", "jpeg")
GOOD = {
    "teacher/steps-50": {"alignment": 0.9, "overall": 0.8},
    "teacher/steps-4": {"alignment": 0.6, "overall": 0.7, "far": 2.0},
    "lcd/steps-1": {"alignment": 0.7},
    "lcd/steps-2": {"alignment": 0.85},
    "lcd/steps-4": {"alignment": 0.85, "far": 0.2},
    "rg-lcd/steps-2": {"overall": 0.9},
    "lcd-longer/steps-2": {"reward_detail": 0.0, "high_frequency": 0.1, "jpeg": 2.0, "far": 0.2},
    "direct/after-20": {"reward_detail": 1.0, "high_frequency": 0.3, "far": 0.4},
    "direct/after-30": {"reward_detail": 2.5, "high_frequency": 0.6, "far": 1.0},
    "direct/steps-2": {"reward_detail": 3.0, "high_frequency": 0.7, "far": 2.0},
    "proxy/steps-2": {"reward_detail": 2.0, "high_frequency": 0.2, "overall": 0.7, "far": 0.3},
    "proxy-frozen/steps-2": {"jpeg": 2.0},
    "jpeg/steps-2": {"jpeg": 1.9},  # the first setting did not hold
    "lcd-longer-again/steps-2": {"jpeg": 2.0},
    "proxy-frozen-again/steps-2": {"jpeg": 2.0},
    "jpeg-again/steps-2": {"jpeg": 1.5},
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
            logs = {name: np.full(LENGTH, 0.75) for name in training.logs}
            pieces[training.name, seed] = Piece(
                "made up", looks, {"training": 60.0, "judging": 30.0}, 1, logs
            )
    return Table(pieces)


def verdict(claim, tmp_path, **changes):
    return PAPER.claims[claim](made_up(**changes), tmp_path)


def test_all_hold_where_the_scores_say_so(tmp_path):
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
        ("a", {"lcd__steps_4": {"alignment": 0.85, "far": 1.9}}),  # as far from real ones as the teacher in 4
        ("b", {"rg_lcd__steps_2": {"overall": 0.79}}),
        # the direct run has no more high frequencies than LCD, at its end and at equal reward
        ("c", {"direct__steps_2": {"reward_detail": 3.0, "high_frequency": 0.1, "far": 2.0}}),
        ("c", {"direct__after_30": {"reward_detail": 2.5, "high_frequency": 0.1, "far": 1.0}}),
        # the proxy gains less than half, is not preferred, or is as far from real pictures
        ("c", {"proxy__steps_2": {"reward_detail": 1.3, "high_frequency": 0.2, "overall": 0.7, "far": 0.3}}),
        ("c", {"proxy__steps_2": {"reward_detail": 2.0, "high_frequency": 0.2, "overall": 0.5, "far": 0.3}}),
        ("c", {"proxy__steps_2": {"reward_detail": 2.0, "high_frequency": 0.2, "overall": 0.7, "far": 2.0}}),
        ("d", {"jpeg_again__steps_2": {"jpeg": 1.85}}),  # 7.5 % smaller
        ("d", {"jpeg_again__steps_2": {"jpeg": 1.5, "alignment": 0.4}}),
        ("d", {"proxy_frozen_again__steps_2": {"jpeg": 1.4}}),
    ],
)
def test_they_do_not_hold_where_one_condition_fails(claim, changes, tmp_path):
    assert verdict(claim, tmp_path, **changes).claim.holds is False


def test_the_page_says_whose_it_is(tmp_path):
    table = made_up()
    findings = [decide(table, tmp_path) for decide in PAPER.claims.values()]
    page = write_page(
        tmp_path / "rg-lcd.md", PAPER.title, findings, table.pieces, by_name(PAPER.trainings())
    ).read_text()
    assert page.startswith("# Latent consistency distillation") and "`unifl reproduce rg-lcd`" in page
    assert "25 times fewer evaluations" in page


def test_equal_reward_is_the_first_look_that_reaches_it():
    assert equal_reward(made_up()) == "after-30"
    late = {"reward_detail": 9.0}
    assert equal_reward(made_up(proxy__steps_2=late)) == "steps-2"  # never reached: the end


def test_agreement_is_drawn_and_told(tmp_path):
    finding = verdict("c", tmp_path)
    points = finding.curves["agreement of proxy and expert over training steps"]["proxy"]
    assert len(points) == LENGTH // 10 and points[0] == pytest.approx((5.0, 0.75, 0.75, 0.75))
    assert "75.0%" in finding.notes


class Silent:
    """A judge that is never asked."""

    def features(self, images):
        raise AssertionError

    def __call__(self, images, prompts):
        raise AssertionError


def workplace(folder):
    return Workplace(
        runs=folder, results=folder, judge=Silent(), trainings=dict(by_name(PAPER.trainings())), num_prompts=5,
        readings=PAPER.readings, keeps_features=True,
    )  # fmt: skip


def test_trainings_have_recipes_and_differ_in_the_rewards_alone(tmp_path):
    place = workplace(tmp_path)
    plain, guided = (place.recipe(place.trainings[name], 1) for name in ("no-reward", "rg-lcd"))
    assert plain.training.seed == 1 and plain.method.rewards is None and guided.method.rewards.active
    plain.method.rewards = guided.method.rewards
    plain.rewards, plain.output_dir = guided.rewards, guided.output_dir
    assert plain == guided


def test_those_after_lcd_start_from_it_and_differ_in_the_reward(tmp_path):
    place = workplace(tmp_path)
    names = ("lcd-longer", "direct", "proxy", "proxy-frozen", "jpeg")
    recipes = {name: place.recipe(place.trainings[name], 2) for name in names}
    for recipe in recipes.values():
        assert recipe.model.student == str(place.run_folder("lcd", 2))
        assert recipe.training.max_train_steps == LENGTH
        assert recipe.training.lr_scheduler == "constant_with_warmup"
    rewards = recipes["direct"].method.rewards
    assert rewards.active == ["detail"] and not rewards.levels
    assert recipes["proxy"].method.proxy.train and not recipes["proxy-frozen"].method.proxy.train
    assert recipes["jpeg"].method.proxy.weight == recipes["proxy"].method.proxy.weight
    plain, direct, proxy = (recipes[name] for name in ("lcd-longer", "direct", "proxy"))
    direct.rewards, direct.method.rewards, direct.output_dir = {}, None, plain.output_dir
    kept = plain.training.checkpoints_total_limit
    direct.training.checkpoints_total_limit = kept  # the direct run is looked at on its way, and keeps all
    assert direct == plain
    plain.method.proxy, plain.proxy, plain.expert = proxy.method.proxy, proxy.proxy, proxy.expert
    plain.training.optimizers, plain.output_dir = proxy.training.optimizers, proxy.output_dir
    assert plain == proxy


def test_the_second_setting_of_a_black_box_has_seeds_prompts_and_controls_of_its_own(tmp_path):
    place = workplace(tmp_path)
    names = ("lcd-longer-again", "jpeg-again", "proxy-frozen-again")
    plain, followed, frozen = (place.recipe(place.trainings[name], 0) for name in names)
    for name, recipe in zip(names, (plain, followed, frozen), strict=True):
        assert recipe.training.seed == SEEDS and recipe.training.max_train_steps == AGAIN_LENGTH
        assert recipe.model.student == str(place.run_folder("lcd-again", 0))
        assert [look.prompts for look in place.trainings[name].looks] == ["fresh"]
    assert place.run_folder("lcd-again", 0).name.startswith("lcd-again-seed3")
    assert followed.method.proxy.train and not frozen.method.proxy.train
    frozen.method.proxy.train, frozen.expert, frozen.output_dir = True, followed.expert, followed.output_dir
    frozen.training.optimizers = followed.training.optimizers
    assert frozen == followed
    plain.method, plain.proxy, plain.expert = followed.method, followed.proxy, followed.expert
    plain.rewards, plain.training.optimizers = followed.rewards, followed.training.optimizers
    plain.output_dir = followed.output_dir
    assert plain == followed


def test_logs_survive_in_a_file(tmp_path):
    table = made_up()
    piece = table.pieces["proxy", 0]
    piece.save(tmp_path / "piece.npz")
    again = Piece.load(tmp_path / "piece.npz")
    assert again.logs["proxy/agreement"] == pytest.approx(piece.logs["proxy/agreement"])
    assert again.looks.keys() == piece.looks.keys()


def test_fields_that_came_later_make_no_piece_old():
    """What is at its default is not part of where scores come from."""
    training = next(training for training in unifl_trainings() if training.name == "style")
    said = json.loads(training.origin(0, prompts=5, settings=""))
    assert "first_seed" not in said and all("real" not in look for look in said["looks"])
    real = json.loads(PAPER.trainings()[0].origin(0, prompts=5, settings=""))
    assert real["looks"][0]["real"] is True and Look().real is False
