"""Scripted people: how often they contradict the truth and each other, and the files that they leave."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from PIL import Image

from unifl.data.preferences import PreferenceSet, read_preferences
from unifl.data.preferences.filters import Filters, select
from unifl.world.annotator import NOISE
from unifl.world.judges import JudgeNetwork, WorldJudge
from unifl.world.preferences import TIE, comparisons, picture_name, win_shares, write_preferences

PROMPTS = 4000


def normal_cdf(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def outcomes(lead, noise):
    """Probabilities that the better picture wins, loses, and that nobody does."""
    deviation = noise * math.sqrt(2)
    wins, loses = normal_cdf((lead - TIE) / deviation), normal_cdf((-lead - TIE) / deviation)
    return wins, loses, 1 - wins - loses


def shares(rows):
    labels = [row["label_0"] for row in rows]
    return [labels.count(value) / len(rows) for value in (1.0, 0.0, 0.5)]


def near(found, expected, number):
    """Within four standard deviations of a share of so many independent cases."""
    return abs(found - expected) < 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / number)


@pytest.mark.parametrize("lead", [0.0, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("noise", [NOISE, 0.02])
def test_people_err_as_often_as_their_noise_implies(lead, noise):
    scores = torch.tensor([[0.4 + lead, 0.4]]).expand(PROMPTS, 2)
    rows = comparisons(scores, ["a circle"] * PROMPTS, seed=3, noise=noise)
    for found, expected in zip(shares(rows), outcomes(lead, noise), strict=True):
        assert near(found, expected, PROMPTS)


def test_two_crowds_contradict_each_other_as_often_as_their_noise_implies():
    lead = 0.06
    scores = torch.tensor([[0.5 + lead, 0.5]]).expand(PROMPTS, 2)
    crowds = [comparisons(scores, ["a circle"] * PROMPTS, seed=seed) for seed in (0, 1)]
    against = sum({a["label_0"], b["label_0"]} == {0.0, 1.0} for a, b in zip(*crowds, strict=True))
    wins, loses, _ = outcomes(lead, NOISE)
    assert near(against / PROMPTS, 2 * wins * loses, PROMPTS)
    again = comparisons(scores, ["a circle"] * PROMPTS, seed=0)
    assert again == crowds[0]


def test_the_opinion_of_a_picture_is_new_in_every_comparison():
    """Three equal pictures: were an opinion kept, nobody could beat the one that beats the third and lose to it.

    Six of eight outcomes of three fair coins are orders, and two are circles.
    """
    rows = comparisons(torch.full((PROMPTS, 3), 0.5), ["a circle"] * PROMPTS, seed=1)
    circles = decided = 0
    for number in range(PROMPTS):
        first, second, third = (row["label_0"] for row in rows[3 * number : 3 * number + 3])
        if 0.5 not in (first, second, third):
            decided += 1
            circles += (first, second, third) in ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0))  # 0 > 1 > 2 > 0
    assert decided > PROMPTS / 2 and near(circles / decided, 1 / 4, decided)


def test_without_noise_the_better_picture_wins_and_near_ones_are_draws():
    scores = torch.tensor([[0.2, 0.5, 0.5 + TIE / 2]])
    rows = comparisons(scores, ["a circle"], seed=0, noise=0.0)
    assert [row["label_0"] for row in rows] == [0.0, 0.0, 0.5]
    assert win_shares(rows) == {
        picture_name(0, 0): ("a circle", 0.0),
        picture_name(0, 1): ("a circle", 0.75),
        picture_name(0, 2): ("a circle", 0.75),
    }


def test_every_two_pictures_of_a_prompt_are_compared_once():
    prompts = ["a circle", "a square"]
    rows = comparisons(torch.rand(2, 4), prompts, seed=0)
    expected = [
        (prompts[number], picture_name(number, a), picture_name(number, b))
        for number in range(2)
        for a, b in itertools.combinations(range(4), 2)
    ]
    assert [(row["caption"], row["jpg_0"], row["jpg_1"]) for row in rows] == expected
    assert [row["ranking_id"] for row in rows] == list(range(12))
    assert all(row["label_0"] + row["label_1"] == 1 for row in rows)
    assert all((row["image_0_uid"], row["image_1_uid"]) == (row["jpg_0"], row["jpg_1"]) for row in rows)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Six prompts with three pictures each, judged by an untrained judge."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("preferences")
    pictures = torch.rand(6, 3, 3, 64, 64)
    judge = WorldJudge(JudgeNetwork("annotator"), "annotator")
    prompts = [f"a small {colour} circle, flat style, white background" for colour in ("red", "blue")] * 3
    write_preferences(folder, judge, pictures, prompts, seed=4)
    return folder, pictures, prompts, judge


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_are_read_as_pick_a_pic_by_the_data_layer(written):
    folder, pictures, prompts, _ = written
    index = read_preferences(folder)
    rows = lines(folder / "metadata.jsonl")
    assert len(index) == len(rows) == 18
    assert int(index.tie.sum()) == sum(row["label_0"] == 0.5 for row in rows)
    found = PreferenceSet(index)
    for number, row in enumerate(rows):
        pair = found[number]
        prompt, column = divmod(number, 3)
        first, second = ((0, 1), (0, 2), (1, 2))[column]
        best = second if row["label_0"] == 0 else first
        assert pair.prompt == prompts[prompt] and pair.tie == (row["label_0"] == 0.5)
        assert (pair.win - pictures[prompt, best]).abs().max() <= 0.5001 / 255
    kept, _ = select(index, Filters(absolute_winners=True))
    assert 0 < len(kept) < 18


def test_people_see_what_the_judge_says(written):
    """Labels are those of comparing the judge's overall scores, column by column as pictures lie."""
    from unifl.world.annotator import overall

    folder, pictures, prompts, judge = written
    with torch.no_grad():
        scores = torch.stack([overall(judge(column, prompts)) for column in pictures.unbind(1)], 1)
    expected = comparisons(scores, prompts, seed=4)
    assert [row["label_0"] for row in lines(folder / "metadata.jsonl")] == [
        row["label_0"] for row in expected
    ]


def test_likes_and_scores_follow_from_the_comparisons(written):
    folder = written[0]
    won = win_shares(lines(folder / "metadata.jsonl"))
    likes = {row["image"]: row["liked"] for row in lines(folder / "likes.jsonl")}
    assert likes == {name: share > 0.5 for name, (_, share) in won.items() if share != 0.5}
    stored = read_preferences(folder / "scored.jsonl", unpaired=True)
    assert [float(score) for score in stored.score] == pytest.approx([share for _, share in won.values()])
    liked = read_preferences(folder / "likes.jsonl")
    assert len(liked) == len(likes)
    assert Image.open(folder / picture_name(5, 2)).size == (64, 64)
