"""Claims are decided from scores: made-up ones here, in which the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unifl.errors import UserError
from unifl.metrics.result import Result, read_result, update_result
from unifl.reproduce.figures import Table
from unifl.reproduce.measure import METRICS, held_out_prompts
from unifl.reproduce.page import write_page
from unifl.reproduce.parts import Piece, Scores, by_name
from unifl.reproduce.unifl_claims import CLAIMS, NEEDED
from unifl.reproduce.unifl_trainings import trainings
from unifl.reproduce.unknown import names_only_unknown

PROMPTS, SEEDS = 120, 3


def made_up(**shifts):
    """Pieces of all trainings with noise around 0.5; `shifts` moves metrics, as {"full": {"overall": 0.1}}.

    A shift of one look alone is written {"frozen/step-24": {...}}.
    """
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.1, (SEEDS, PROMPTS))
    pieces = {}
    for training in trainings():
        for seed in range(SEEDS):
            looks = {}
            for look in training.looks:
                moved = shifts.get(training.name, {}) | shifts.get(f"{training.name}/{look.name}", {})
                looks[look.name] = Scores(
                    {
                        metric: 0.5 + shared[seed] + rng.normal(0, 0.02, PROMPTS) + moved.get(metric, 0.0)
                        for metric in (*METRICS, "saturation", "reward_detail")
                    }
                )
            pieces[training.name, seed] = Piece("made up", looks, {"training": 60.0, "judging": 30.0}, 1)
    return Table(pieces)


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({"number": 10, "random": 0.9, "active": 0.7}))
    return tmp_path


MIXED = np.array([not names_only_unknown(prompt) for prompt in held_out_prompts(PROMPTS, "unknown")])
BETTER, WORSE = {"overall": 0.05}, {"overall": -0.05}
DECIDING = {
    "a": {"full-long": BETTER},
    "b": {"full": BETTER},
    "c": {"active-prompts": BETTER},
    "d": {"frozen-again": {"reward_detail": 0.3, "overall": -0.05}},
    "e": {"style-again": {"style": 0.1}},
    "f": {"full": {"color": 0.1}, "hinge-large": {"saturation": 0.1, "overall": -0.02}},
    "g": {"stage2": BETTER, "stage2/steps-1": WORSE},
    "h": {
        "structure-alone": {"structure": 0.05},
        "style-alone": {"style": 0.05},
        "structure-and-style": {"structure": 0.05, "style": 0.05},
    },
    "i": {"unknown-structure": {"structure": 0.05}},
}
CONTRADICTING = {
    "a": [{}, {"no-perceptual-long": BETTER}, {"full": BETTER}],
    "b": [{}, {"global": BETTER}],
    "c": [{}, {"random-prompts": BETTER}],
    "d": [
        {},
        {"frozen-again": {"reward_detail": 0.3, "overall": 0.05}},  # the proxy rises, and gold with it
        {"frozen-again": {"overall": -0.05}},  # gold falls, but not because the proxy was climbed
        {"frozen-again": {"reward_detail": 0.3, "overall": -0.05}, "adversarial-again": {"overall": -0.05}},
        {"frozen-again": {"reward_detail": 0.3, "overall": -0.05}, "adversarial-again": {"overall": -0.025}},
    ],
    "e": [
        {},
        {"style-again": {"style": 0.1}, "finetune-again": {"style": 0.2}},
        {"finetune-again": {"style": -0.1}},  # better than fine-tuning only because that does harm
        {"style": {"style": 0.1}, "style-weaker": {"style": 0.1}},  # a later look decides nothing
    ],
    "f": [
        {},
        {"full": {"color": 0.1}},
        {"full": {"color": 0.1}, "hinge-large": {"saturation": 0.1, "overall": 0.1}},
    ],
    "g": [{}, {"stage2": BETTER}, {"stage2/steps-4": BETTER}],
    "h": [
        {},  # nothing does anything
        {"structure-alone": {"structure": 0.05}, "style-alone": {"style": 0.05}},
        {
            "structure-alone": {"structure": 0.05},
            "style-alone": {"style": 0.05},
            "structure-and-style": {"structure": 0.05},
        },
    ],
    "i": [
        {},
        {"structure-alone": {"structure": 0.05}},
        {"unknown-structure": {"structure": 0.1 * MIXED}},  # only what else those prompts name
    ],
}


@pytest.mark.parametrize("letter", CLAIMS)
def test_a_claim_holds_where_the_scores_say_so(letter, prepared):
    finding = CLAIMS[letter](made_up(**DECIDING[letter]), prepared)
    assert finding.claim.holds is True and finding.claim.id == letter
    pairs = SEEDS * (PROMPTS - MIXED.sum() if letter == "i" else PROMPTS)
    assert finding.claim.train_seeds == SEEDS and finding.claim.n == pairs
    assert finding.claim.low <= finding.claim.measured <= finding.claim.high


@pytest.mark.parametrize(
    ("letter", "shifts"),
    [(letter, shifts) for letter, several in CONTRADICTING.items() for shifts in several],
)
def test_and_does_not_where_they_do_not(letter, shifts, prepared):
    assert CLAIMS[letter](made_up(**shifts), prepared).claim.holds is False


@pytest.mark.parametrize("letter", CLAIMS)
def test_what_a_claim_needs_is_enough(letter, prepared):
    whole = made_up()
    table = Table({key: piece for key, piece in whole.pieces.items() if key[0] in NEEDED[letter]})
    CLAIMS[letter](table, prepared)
    for missing in NEEDED[letter]:
        part = Table({key: piece for key, piece in table.pieces.items() if key[0] != missing})
        with pytest.raises(UserError, match="nothing was measured yet of"):
            CLAIMS[letter](part, prepared)


def test_only_common_seeds_are_paired():
    table = made_up(full=BETTER)
    pieces = dict(table.pieces)
    del pieces["full", 1]
    fewer = Table(pieces)
    assert fewer.seeds("full", "base") == [0, 2]
    gap = table.values("full", "overall", seeds=[0, 2]) - table.values("base", "overall", seeds=[0, 2])
    assert fewer.change("overall", "full", "base").value == pytest.approx(gap.mean())


def test_the_page_shows_every_claim(tmp_path, prepared):
    table = made_up(**DECIDING["a"])
    findings = [CLAIMS[letter](table, prepared) for letter in CLAIMS]
    page = write_page(
        tmp_path / "unifl.md", "UniFL", findings, table.pieces, by_name(trainings())
    ).read_text()
    _, *sections = page.split("\n## ")
    assert len(sections) == len(findings) and len({finding.claim.holds for finding in findings}) == 2
    for finding, section in zip(findings, sections, strict=True):
        assert section.startswith(f"({finding.claim.id}) {finding.claim.statement}\n")
        assert ("**Holds.**" in section) is finding.claim.holds
        assert ("**Does not hold here.**" in section) is not finding.claim.holds
        assert f"{abs(finding.claim.low):.1%}" in section or f"{finding.claim.low:+.3f}" in section
    assert "3 training seeds" in page and "120 held-out prompts" in page
    minutes = len(table.pieces) * 1.5
    assert f"took {minutes:.0f} minutes" in page
    assert (tmp_path / "unifl" / "claim-d.svg").stat().st_size > 2000
    written = update_result(tmp_path / "unifl.json", Result(claims=[finding.claim for finding in findings]))
    assert read_result(tmp_path / "unifl.json") == written and len(written.claims) == len(CLAIMS)


def test_pieces_survive_the_disk(tmp_path):
    piece = next(iter(made_up().pieces.values()))
    piece.save(tmp_path / "pieces" / "one.npz")
    again = Piece.load(tmp_path / "pieces" / "one.npz")
    assert (again.origin, again.seconds, again.threads) == (piece.origin, piece.seconds, piece.threads)
    assert again.looks.keys() == piece.looks.keys()
    for look, scores in piece.looks.items():
        for metric, values in scores.values.items():
            assert np.allclose(again.looks[look].values[metric], values, atol=1e-6)
    whole = (tmp_path / "pieces" / "one.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"something else"):
        (tmp_path / "pieces" / "one.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"one.npz is not a result of `unifl reproduce`.*delete it"):
            Piece.load(tmp_path / "pieces" / "one.npz")
