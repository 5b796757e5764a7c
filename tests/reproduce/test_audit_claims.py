"""The claims about the audit, decided from made-up findings and scores in which the truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from unifl.errors import UserError
from unifl.evaluation.overoptimisation import OVER_OPTIMISED, SOUND
from unifl.metrics.result import read_result
from unifl.reproduce import audit_trainings as runs
from unifl.reproduce import measure as measuring
from unifl.reproduce.audit_claims import PAPER, fires, keeps
from unifl.reproduce.figures import Table
from unifl.reproduce.measure import METRICS, Workplace, audit_file
from unifl.reproduce.page import write_page
from unifl.reproduce.parts import Look, Piece, Scores, Training, by_name
from unifl.reproduce.unifl_trainings import trainings as unifl_trainings
from unifl.world.assets import load_judge

DOCS = Path(__file__).parents[2] / "docs"
CHOICE = DOCS.parent / "benchmarks" / "results" / "audit_choice.json"
PROMPTS = 50
ALL = (*runs.HACKED, *runs.SOUND)


def _names():
    return ["the start", *(f"checkpoint-{step}" for step in range(12, runs.STEPS + 1, 12))]


def _made_up(folder, *, verdicts=None, kept=None, gold=None):
    """Gold rises to the third checkpoint and, where a run hacks, falls from there; the audit keeps the third."""
    rng = np.random.default_rng(0)
    pieces = {}
    for name in ALL:
        hacked = name in runs.HACKED
        means = [0.7, 0.72, 0.74, 0.75] + ([0.7, 0.6, 0.5, 0.4, 0.3] if hacked else [0.75] * 5)
        means = (gold or {}).get(name, means)
        looks = {}
        for checkpoint, mean in zip(_names(), means, strict=True):
            values = mean + rng.normal(0, 0.05, PROMPTS)
            values += mean - values.mean()
            looks[runs.look_of(checkpoint)] = Scores(dict.fromkeys(METRICS, values))
        pieces[name, 0] = Piece("made up", looks, {"training": 60.0}, 1)
        interval = {"value": 0.1, "low": 0.0, "high": 0.2}
        record = {
            "outcome": {
                "verdict": (verdicts or {}).get(name, OVER_OPTIMISED if hacked else SOUND),
                "keep": (kept or {}).get(name, 3),
            },
            "checkpoints": [
                {"name": checkpoint, "drift": float(at), "reward": interval, "held_out": interval}
                for at, checkpoint in enumerate(_names())
            ],
        }
        audit_file(folder, name, 0).write_text(json.dumps(record))
    return Table(pieces)


def test_right_verdicts_and_good_checkpoints_hold(tmp_path):
    table = _made_up(tmp_path)
    verdicts, checkpoints = fires(table, tmp_path), keeps(table, tmp_path)
    assert verdicts.claim.holds and verdicts.claim.measured == 1.0 and verdicts.claim.n == len(ALL)
    assert verdicts.claim.low == pytest.approx(0.025 ** (1 / len(ALL)))  # eight of eight prove no more
    assert checkpoints.claim.holds and checkpoints.claim.measured == pytest.approx(0.02 * 0.75)
    trainings = by_name(PAPER.trainings())
    page = write_page(
        tmp_path / "audit.md", PAPER.title, [verdicts, checkpoints], table.pieces, trainings
    ).read_text()
    assert (
        "with one training seed each, 8 in all;" in page
        and "intervals over prompts. All" in page
        and "Three seeds" not in page
    )
    assert "gold, the end - after-36, its best: hack-detail, found over-optimised | -0.450" in page
    assert (tmp_path / "audit/claim-a.svg").is_file()


@pytest.mark.parametrize(("name", "said"), [("hack-color", SOUND), ("sound-layout", OVER_OPTIMISED)])
def test_one_wrong_verdict_is_enough(tmp_path, name, said):
    finding = fires(_made_up(tmp_path, verdicts={name: said}), tmp_path)
    assert finding.claim.holds is False and finding.claim.measured == 1 - 1 / len(ALL)


def test_one_checkpoint_that_is_far_from_the_best_is_enough(tmp_path):
    finding = keeps(_made_up(tmp_path, kept={"hack-color": 5}), tmp_path)
    assert finding.claim.holds is False and finding.claim.measured == pytest.approx(0.6 - 0.98 * 0.75)
    assert "least (hack-color)" in finding.rows[0].what


def test_two_percent_are_of_the_whole_score(tmp_path):
    falls = [0.75] + [0.75] * 7
    for kept, holds in ((0.98 * 0.75 + 1e-6, True), (0.98 * 0.75 - 1e-3, False)):
        table = _made_up(tmp_path, kept={"sound-layout": 0}, gold={"sound-layout": [kept, *falls]})
        assert keeps(table, tmp_path).claim.holds is holds


def test_a_record_that_is_missing_is_named(tmp_path):
    table = _made_up(tmp_path)
    audit_file(tmp_path, "hack-color", 0).unlink()
    with pytest.raises(UserError, match="audit-hack-color-seed0.json is missing"):
        fires(table, tmp_path)


# --- the runs --------------------------------------------------------------------------------------------


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
        results=tmp_path / "results",
        judge=Silent(),
        trainings=dict(by_name(PAPER.trainings())),
        num_prompts=5,
    )


@pytest.mark.parametrize("name", ALL)
def test_every_run_validates_and_has_a_look_at_every_checkpoint(place, name):
    training = place.trainings[name]
    recipe = place.recipe(training, 0)
    steps = range(recipe.training.checkpointing_steps, recipe.training.max_train_steps + 1,
                  recipe.training.checkpointing_steps)  # fmt: skip
    wanted = {runs.look_of("the start"), *(runs.look_of(f"checkpoint-{step}") for step in steps)}
    assert {look.name for look in training.looks} == wanted and len(wanted) == 9
    assert recipe.training.checkpoints_total_limit is None and training.audited
    assert recipe.sampling.num_steps == 4 and recipe.training.seed == training.first_seed
    assert len({one.first_seed for one in place.trainings.values()}) == len(place.trainings)


def test_a_run_is_audited_before_gold_draws_it(place, monkeypatch):
    happened = []
    monkeypatch.setattr(measuring, "train", lambda *_: happened.append("train"))
    monkeypatch.setattr(measuring, "_drawn", lambda *_: happened.append("draw"))
    monkeypatch.setattr(measuring, "_judged", lambda *_: Scores({"overall": np.zeros(5)}))
    monkeypatch.setattr(measuring, "_opened", lambda *_: None)
    monkeypatch.setattr(measuring, "_keep_pictures", lambda *_: None)

    def audit_run(run, request):
        happened.append("audit")
        (run / "audit").mkdir(parents=True)
        (run / "audit/audit.json").write_text('{"outcome": 1}')

    monkeypatch.setattr(measuring, "audit_run", audit_run)
    measuring.measure(place, place.trainings["hack-detail"], 0)
    assert happened == ["train", "audit", *["draw"] * 9]
    assert json.loads(audit_file(place.prepared, "hack-detail", 0).read_text()) == {"outcome": 1}


def test_every_set_of_runs_has_prompts_of_its_own_for_gold():
    number = PAPER.num_prompts
    fresh = ("fresh", "fresh_again", "fresh_once_more")
    sets = [set(measuring.held_out_prompts(number, which)) for which in ("held_out", *fresh)]
    assert [len(one) for one in sets][1:] == [number] * 3
    assert not any(a & b for a, b in combinations(sets, 2))
    of = {training.name: training for training in PAPER.trainings()}
    for renamed, prompts, looked in zip(
        (runs.again, runs.third, runs.fourth), fresh, (64, 477, 477), strict=True
    ):
        for name in renamed(ALL):
            assert {look.prompts for look in of[name].looks} == {prompts} and of[name].audit_prompts == looked


def test_older_pieces_do_not_grow_old():
    """A training that is not audited says nothing of it in its origin."""
    training = unifl_trainings()[0]
    assert "audited" not in json.loads(training.origin(0, prompts=1, settings=""))
    audited = Training(name="a", audited=True)
    assert json.loads(audited.origin(0, prompts=1, settings=""))["audited"] is True


def test_the_committed_results_are_those_of_the_committed_scores():
    """And the page about the audit says what they say."""
    results = DOCS / "results" / "audit"
    names = (*ALL, *runs.again(ALL), *runs.third(ALL), *runs.fourth(ALL))
    pieces = {(name, 0): Piece.load(results / "pieces" / f"{name}-seed0.npz") for name in names}
    claims = read_result(DOCS / "results" / "audit.json").claims
    findings = [decide(Table(pieces), results / "prepared") for decide in PAPER.claims.values()]
    assert [(claim.id, claim.holds) for claim in claims] == [(f.claim.id, f.claim.holds) for f in findings]
    for claim, finding in zip(claims, findings, strict=True):
        assert claim.measured == pytest.approx(finding.claim.measured)
    page = " ".join((DOCS / "audit.md").read_text().split())
    least_of = ("sound-global", "hack-lighting-again", "hack-lighting-third", "hack-lighting-fourth")
    for finding, name in zip(findings[1::2], least_of, strict=True):
        figures = {row.what: row.figure.value for row in finding.rows[1:]}
        reached = [value >= 0 for what, value in figures.items() if "kept " in what and " - 0.98 x " in what]
        least = figures[f"gold: {name}, kept"] / figures[f"gold: {name}, best"]
        share = f"{least:.2%}".replace("%", " %")
        assert f"| {sum(reached)} of {len(reached)} | {share} (`{name}`) |" in page
    for look in (runs.START, runs.END):
        gold = [
            {of: scores.values["overall"].mean() for of, scores in one.looks.items()}
            for one in pieces.values()
        ]
        near = sum(one[look] >= 0.98 * max(one.values()) for one in gold)
        assert f"would be within 2 % in {near} of the {len(pieces)}" in page


@pytest.mark.skipif(not CHOICE.is_file(), reason="no benchmarks in this copy")
def test_the_page_says_how_far_a_choice_hangs_on_the_prompts():
    another = json.loads(CHOICE.read_text())["another"]
    page = " ".join((DOCS / "audit.md").read_text().split())
    assert f"{100 * another['64']:.0f} % of the choices from 64 of 1,024 prompts" in page
    assert f"and {100 * another['512']:.0f} % of those from 512" in page


@pytest.mark.slow
def test_a_run_is_trained_audited_and_judged(tmp_path):
    """Four steps and few prompts, with the validation judge in place of gold."""
    training = next(one for one in PAPER.trainings() if one.name == "hack-color")
    looks = (Look(name="start", checkpoint=0), Look(name="after-2", checkpoint=2), Look(name="end"))
    short = ("training.max_train_steps=4", "training.checkpointing_steps=2", "training.train_batch_size=2")
    training = replace(training, looks=looks, changes=(*training.changes, *short))
    place = Workplace(
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        judge=load_judge("validation"),
        trainings={training.name: training},
        num_prompts=4,
    )
    piece = measuring.measure(place, training, 0)
    start, between, end = (piece.looks[look.name].values["reward_detail"] for look in looks)
    assert np.abs(end - start).max() > np.abs(between - start).max() > 0
    record = json.loads(audit_file(place.prepared, training.name, 0).read_text())
    assert [row["name"] for row in record["checkpoints"]] == ["the start", "checkpoint-2", "checkpoint-4"]
    assert list(record["checkpoints"][0]["scores"]) == ["reward/global", "held_out/validation"]
