from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from unifl import config as configs
from unifl.assembly.figures import EVALUATION_SEED
from unifl.errors import UserError
from unifl.reproduce import run as runs
from unifl.reproduce.measure import METRICS, Workplace, held_out_prompts
from unifl.reproduce.parts import Look, Piece, Scores, by_name
from unifl.reproduce.run import Request, reproduce
from unifl.reproduce.unifl_claims import NEEDED, PAPER
from unifl.reproduce.unifl_trainings import SEEDS, color_levels, trainings
from unifl.reproduce.unknown import SHAPES, _known_scenes, names_unknown
from unifl.world.annotated import SceneImages
from unifl.world.scenes import parse, sample_prompts


class Silent:
    """A judge that is never asked."""

    def features(self, images):
        raise AssertionError

    def __call__(self, images, prompts):
        raise AssertionError


@pytest.fixture
def place(tmp_path):
    return Workplace(
        runs=tmp_path / "runs",
        results=tmp_path / "results" / "unifl",
        judge=Silent(),
        trainings=dict(by_name(trainings())),
        num_prompts=5,
    )


@pytest.mark.parametrize("training", [t for t in trainings() if t.recipe], ids=lambda training: training.name)
def test_every_training_has_a_recipe_that_validates(place, training):
    recipe = place.recipe(training, 2)
    assert recipe.training.seed == training.first_seed + 2 and recipe.validation is None
    assert "$prepared" not in configs.dump(recipe) and "$runs" not in configs.dump(recipe)
    last = max((look.checkpoint or 0 for look in training.looks), default=0)
    assert last in (0, recipe.training.max_train_steps)
    assert all((look.checkpoint or 0) % recipe.training.checkpointing_steps == 0 for look in training.looks)


def test_compared_trainings_differ_in_one_thing(place):
    def recipe(name):
        return place.recipe(place.trainings[name], 0)

    full, without = recipe("full"), recipe("no-perceptual")
    assert without.method.perceptual is None and full.method.perceptual is not None
    for a, b in (
        ("full", "no-perceptual"),
        ("full", "global"),
        ("frozen", "adversarial"),
        ("full", "hinge-large"),
    ):
        assert recipe(a).training.max_train_steps == recipe(b).training.max_train_steps
        assert recipe(a).training.learning_rate == recipe(b).training.learning_rate
        assert recipe(a).sampling == recipe(b).sampling
    style, plain = recipe("style"), recipe("finetune")
    for name in ("max_train_steps", "train_batch_size", "learning_rate", "lr_scheduler", "mixed_precision"):
        assert getattr(style.training, name) == getattr(plain.training, name)
    assert style.data == plain.data and style.sampling == plain.sampling
    levels = color_levels()
    assert levels["small"] < levels["calibrated"] < levels["large"]
    assert recipe("hinge-large").method.aesthetic.levels["color"] == pytest.approx(levels["large"])


def test_further_looks_are_at_the_same_runs(place):
    again = [training for training in place.trainings.values() if training.run is not None]
    assert again
    for training in again:
        assert place.run_folder(training.name, 1) == place.run_folder(training.run, 1)
        assert place.recipe(training, 1) == place.recipe(place.trainings[training.run], 1)
        assert place.origin(training, 1) != place.origin(place.trainings[training.run], 1)


def test_a_piece_depends_on_everything_it_should(place):
    full, stage2 = place.trainings["full"], place.trainings["stage2"]
    origin = place.origin(full, 0)
    assert origin == place.origin(full, 0) != place.origin(full, 1)
    changed = Workplace(**{**vars(place), "changes": ("training.max_train_steps=3",)})
    assert changed.origin(full, 0) != origin and changed.origin(stage2, 0) != place.origin(stage2, 0)
    moved = Workplace(**{**vars(place), "runs": place.runs.parent / "elsewhere"})
    assert moved.origin(stage2, 0) == place.origin(stage2, 0)
    assert moved.origin(place.trainings["unknown-structure"], 0) == place.origin(
        place.trainings["unknown-structure"], 0
    )
    other = Workplace(**{**vars(place), "num_prompts": 6})
    assert other.origin(full, 0) != origin


@pytest.mark.parametrize("number", [1, 2, 3])
def test_shards_cover_everything_once_and_keep_chains_together(place, number):
    wanted = [(training, seed) for training in place.trainings.values() for seed in range(3)]
    shards = [runs._of_shard(wanted, place, (index, number)) for index in range(number)]
    names = [(training.name, seed) for shard in shards for training, seed in shard]
    assert sorted(names) == sorted((training.name, seed) for training, seed in wanted)
    for shard in shards:
        held = {(training.name, seed) for training, seed in shard}
        assert all(("full", seed) in held for name, seed in held if name == "stage2")


@pytest.fixture
def counted(monkeypatch):
    """Pieces are made up instead of trained; what is asked for is written down."""
    asked = []

    def measure(place, training, seed):
        asked.append((training.name, seed))
        scores = {m: np.full(place.num_prompts, 0.5) for m in (*METRICS, "saturation", "reward_detail")}
        looks = {look.name: Scores(scores) for look in training.looks}
        piece = Piece(place.origin(training, seed), looks, {"training": 1.0}, 1)
        piece.save(place.piece_file(training.name, seed))
        return piece

    monkeypatch.setattr(runs, "measure", measure)
    monkeypatch.setattr(runs, "prepare", lambda name, folder, work: None)
    return asked


def test_what_was_measured_is_not_measured_again(tmp_path, counted):
    def go(prompts=4, **request):
        return reproduce(
            PAPER, tmp_path / "results", tmp_path / "runs", Request(num_prompts=prompts, **request), gold=Silent,
            console=Console(quiet=True),
        )  # fmt: skip

    findings = go(claims=("a",))
    assert [finding.claim.id for finding in findings] == ["a"] and findings[0].claim.holds is False
    assert sorted(counted) == sorted((n, s) for n in NEEDED["a"] for s in range(3))
    counted.clear()
    assert go(claims=("b",)) and {name for name, _ in counted} == {"global"}
    counted.clear()
    findings = go(claims=("b",))  # the page keeps what is known of others
    assert counted == [] and [finding.claim.id for finding in findings] == ["a", "b"]
    with pytest.raises(
        UserError, match=r"base-seed0.npz was judged on 4 prompts, not 3; choose another folder"
    ):
        go(claims=("a",), prompts=3)
    assert counted == []
    assert go(claims=("a",), changes=("training.max_train_steps=7",))
    assert {name for name, _ in counted} == set(NEEDED["a"]) - {"base"}  # the packaged model has no recipe


def test_the_page_waits_for_all_shards(tmp_path, counted):
    def go(index):
        return reproduce(
            PAPER, tmp_path / "results", tmp_path / "runs", Request(num_prompts=4, claims=("a",), shard=(index, 2)),
            gold=Silent, console=Console(quiet=True),
        )  # fmt: skip

    assert go(0) is None and not (tmp_path / "results" / "unifl.md").exists()
    assert go(1) is not None and (tmp_path / "results" / "unifl.md").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [({"claims": ("z",)}, "there is no claim 'z'"), ({"shard": (2, 2)}, "shard 2/2 makes no sense")],
)
def test_requests_that_make_no_sense(tmp_path, request_, message):
    with pytest.raises(UserError, match=message):
        reproduce(PAPER, tmp_path, tmp_path, Request(**request_), gold=Silent, console=Console(quiet=True))


def test_unknown_shapes_are_in_the_prompts_and_not_in_the_pictures():
    prompts = held_out_prompts(50, "unknown")
    assert len(prompts) == 50 and all(names_unknown(prompt) for prompt in prompts)
    assert all(parse(prompt).held_out for prompt in prompts)
    assert not any(names_unknown(prompt) for prompt in _known().prompts)
    assert any(names_unknown(prompt) for prompt in held_out_prompts(50, "held_out"))
    assert SHAPES == {"star", "cross"}


def _known():
    # the class draws 3,000 scenes; a part of them is enough here
    return SceneImages(_known_scenes(20, seed=9, min_quality=0.7))


def test_looks_of_the_packaged_model_say_how_many_steps():
    base = by_name(trainings())["base"]
    assert base.recipe is None and all(isinstance(look, Look) and look.num_steps for look in base.looks)


def test_a_second_setting_is_judged_on_what_nothing_was_decided_on():
    """New training seeds, and prompts that occur in no other set."""
    number = 50
    fresh = held_out_prompts(number, "fresh")
    assert len(set(fresh)) == number
    assert not set(fresh) & set(sample_prompts(4 * number, seed=EVALUATION_SEED, held_out=True))
    again = [training for training in trainings() if training.name.endswith("-again")]
    assert again and all(training.first_seed >= len(SEEDS) for training in again)
    assert all(look.prompts == "fresh" for training in again for look in training.looks)
