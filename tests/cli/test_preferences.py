"""`unifl preferences report` and `filter`."""

from __future__ import annotations

import json

import pytest
import torch

from preference_files import colour, comparison, write_jsonl, write_parquet, write_pictures
from unifl.data.preferences import PreferenceSet, read_preferences
from unifl.data.store import SampleStore


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        comparison("cat", "a", "b", 1.0, ranking_id=1),
        comparison("cat", "a", "c", 1.0, ranking_id=2),
        comparison("cat", "a", "c", 1.0, ranking_id=2),
        comparison("cat", "b", "c", 1.0, ranking_id=3),
        comparison("cat", "c", "b", 1.0, ranking_id=4),
        comparison("dog", "d", "e", 0.5, ranking_id=5),
        comparison("dog", "d", "e", None, ranking_id=6),
        comparison("pig", "e", "a", 0.3, ranking_id=7),
    ]
    write_parquet(tmp_path / "pairs" / "train-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "pairs" / "test-00000-of-00001.parquet", rows[:1])
    return tmp_path


def cells(output):
    """Rows of printed tables: name to the first number."""
    lines = [
        [cell.strip() for cell in line.split("│")] for line in output.splitlines() if line.startswith("│")
    ]
    return {line[1]: line[2] for line in lines}


def test_the_report_counts(unifl, data):
    result = unifl("preferences", "report", "pairs", "--split", "train", "--json", "report.json")
    assert result.exit_code == 0, result.output
    found = cells(result.output)
    assert found["comparisons"] == "8" and found["labelled"] == "7" and found["ties"] == "1"
    assert found["exact duplicates"] == "1" and found["two pictures judged both ways"] == "1"
    assert found["pictures that win and lose"] == "2" and found["absolute winners"] == "2"
    assert (
        found["comparisons that they win"] == "4"
        and found["0.3 to 0.4"] == "1"
        and found["0.9 to 1.0"] == "5"
    )
    assert "57.1%" in result.output
    report = json.loads((data / "report.json").read_text())
    assert report["winners"]["rows"] == 4 and report["contradictions"]["rows"] == 5
    assert sum(report["strengths"]) == 6


def test_what_is_kept_is_read_like_data(unifl, data):
    result = unifl(
        *("preferences", "filter", "pairs", "out/kept.parquet", "--split", "train", "--collapse-duplicates"),
        *("--absolute-winners", "--latest-losers", "--min-strength", 0.5),
    )
    assert result.exit_code == 0, result.output
    assert list(cells(result.output).values()) == ["8", "7", "6", "3", "2", "1", "1"]
    rows = PreferenceSet(read_preferences(data / "out" / "kept.parquet"))
    (pair,) = rows
    assert (pair.prompt, colour(pair.win), colour(pair.lose)) == ("cat", "a", "c")
    again = unifl("preferences", "report", "out/kept.parquet")
    assert cells(again.output)["labelled"] == "1"
    more = unifl("preferences", "filter", "pairs", "all.jsonl", "--split", "train", "--ties", "keep")
    assert more.exit_code == 0 and len((data / "all.jsonl").read_text().splitlines()) == 7


def test_likes_and_a_store(unifl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "liked")
    labels = [("a", True), ("b", False), ("c", None)]
    rows = [{"prompt": "cat", "file_name": f"{name}.png", "liked": label} for name, label in labels]
    write_jsonl(tmp_path / "liked" / "metadata.jsonl", rows)
    result = unifl("preferences", "report", "liked")
    assert result.exit_code == 0, result.output
    assert cells(result.output)["liked"] == "1" and cells(result.output)["without a label"] == "1"
    assert "scores from 0 to 1, 0.5 on average" in result.output
    SampleStore(tmp_path / "store").add(
        torch.rand(3, 3, 8, 8),
        ["cat"] * 3,
        seeds=[0, 1, 2],
        model="m",
        scores={"color": torch.tensor([0.0, 1.0, 5.0])},
    )
    result = unifl(
        "preferences", "filter", "store", "kept.jsonl", "--score", "color", "--pairing", "extremes"
    )
    assert result.exit_code == 0, result.output
    (line,) = map(json.loads, (tmp_path / "kept.jsonl").read_text().splitlines())
    assert line["chosen"] == "store/000002.png" and line["rejected"] == "store/000000.png"
    result = unifl("preferences", "filter", "liked", "kept.jsonl")
    assert result.exit_code == 2 and "filters are for pairs" in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("report", "nowhere"), "there is no file or folder nowhere"),
        (("report", "pairs"), "pairs has the splits test, train; set `split`"),
        (("filter", "pairs", "kept.csv"), "use a .jsonl or .parquet file"),
        (("filter", "pairs", "kept.jsonl", "--min-wins", 1), "min_wins counts the wins of absolute winners"),
        (("filter", "pairs", "kept.jsonl", "--split", "train", "--score", "x"), "are for a sample store"),
        (("filter", "pairs/a.parquet", "pairs/a.parquet"), "is also what is read"),
    ],
)
def test_mistakes_are_one_line(unifl, data, command, message):
    result = unifl("preferences", *command)
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_filters_that_leave_nothing(unifl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "pairs.parquet", [comparison("cat", "a", "b", 0.5)])
    result = unifl("preferences", "filter", "pairs.parquet", "kept.jsonl")
    assert result.exit_code == 2 and "nothing of pairs.parquet is left to write" in result.stderr
    assert not (tmp_path / "kept.jsonl").exists()
