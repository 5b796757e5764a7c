"""`unifl score` and `unifl scorers`."""

from __future__ import annotations

import json

import pytest

from unifl.cli.score import labelled, scorer_parts
from unifl.errors import UserError


def test_pictures_are_scored_from_the_command_line(workspace, unifl):
    drawn = unifl(
        "generate", "tiny", "a red circle", "a dog", "--steps", "1", "--out", "drawn", "--count", "2"
    )
    assert drawn.exit_code == 0, drawn.output
    result = unifl("score", "drawn", "sharpness", "colour=colourfulness", "mine=assembly_toy:RewardNet")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (workspace / "drawn/metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["scores"].keys() == {"sharpness", "colour", "mine"} for row in rows)
    assert "sharpness: " in result.output and "over 2 prompts" in result.output
    pairs = unifl("preferences", "report", "drawn", "--score", "sharpness")
    assert pairs.exit_code == 0, pairs.output


def test_wrong_use_is_one_line(workspace, unifl):
    for arguments, message in (
        (["pictures"], "no scorer was named"),
        (["pictures", "sharpness", "--weights", "pick=x"], "gives no scorer of sharpness a path"),
        (["pictures", "sharpness", "--weights", "sharpness=x"], "sharpness has no weights"),
        (["pictures", "sharpness", "--revision", "sharpness=x"], "leave out weights, base and revision"),
        (["nothing", "sharpness"], "there is no folder nothing; check the path"),
        (["prompts.txt", "sharpness"], "there is no folder prompts.txt; check the path"),
        ([".", "sharpness"], "has no metadata.jsonl"),
        (["pictures", "hpsv3", "--question", "hpsv3=nothing.txt"], "nothing.txt cannot be read"),
        (["pictures", "sharpness", "--question", "sharpness=x"], "sharpness has no setting 'question'"),
    ):
        result = unifl("score", *arguments)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


def test_scorers_are_listed(unifl):
    result = unifl("scorers")
    assert result.exit_code == 0 and "pickscore" in result.output and "jpeg_small" in result.output


@pytest.mark.parametrize("names", [("a:colour", "b:colour"), ("x=sharpness", "x=jpeg_small")])
def test_two_scorers_of_one_name_are_refused(names):
    with pytest.raises(UserError, match="two are called '(colour|x)'; give them names"):
        labelled(names)
    assert labelled(["a:colour", "mine=b:colour", "rewards/liked"]) == {
        "colour": "a:colour",
        "mine": "b:colour",
        "liked": "rewards/liked",
    }


def test_files_and_revisions_go_to_the_scorer_that_they_name():
    asked = labelled(["pick=pickscore", "hps=hpsv2.1", "sharpness"])
    given = {
        "weights": ["hps=a=b.pt"],
        "base": None,
        "question": [],
        "revision": ["pick=abc", "hps=v2"],
    }
    found = scorer_parts(asked, **given)
    assert [part.path for part in found.values()] == [
        "scorer:pickscore", "scorer:hpsv2.1", "scorer:sharpness"
    ]  # fmt: skip
    assert found["pick"].kwargs == {"revision": "abc"} and found["sharpness"].kwargs == {}
    assert found["hps"].kwargs == {"weights": "a=b.pt", "revision": "v2"}
