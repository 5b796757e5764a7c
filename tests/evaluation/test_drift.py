from __future__ import annotations

import math

import pytest
import torch

from unifl.errors import UserError
from unifl.evaluation.drift import Reading, drift, require_scale, take_reading
from unifl.feedback import as_feedback
from unifl.metrics.spectrum import high_frequency_share

PROMPTS = ["a", "a", "b", "b"]


def _pictures(seed=0, side=16):
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _read(images, rewards=None, **options):
    return take_reading(
        images, PROMPTS, rewards or {}, **({"samples": 2, "cut": 0.5, "batch_size": 3} | options)
    )


def test_against_itself_nothing_has_changed():
    reading = _read(
        _pictures(), {"reward/light": as_feedback(lambda x: x.mean((1, 2, 3)), needs_prompt=False)}
    )
    found = drift(reading, reading)
    assert found["high_frequency_ratio"] == 1 and found["diversity_ratio"] == 1
    assert found["base_distance"] == 0 and found["reward_change/light"] == 0
    assert found["reward/light"] == pytest.approx(float(_pictures().mean()), abs=1e-6)


def test_each_number_is_what_it_says():
    start, now = _pictures(0), _pictures(1) * 0.5
    seen = []

    def length(images, prompts):
        seen.extend(prompts)
        return torch.tensor([float(len(prompt)) for prompt in prompts]) + images.mean((1, 2, 3))

    rewards = {"trained/length": as_feedback(length, name="length")}
    found = drift(_read(now, rewards), _read(start, rewards))
    share = high_frequency_share(now).mean(), high_frequency_share(start).mean()
    assert found["high_frequency"] == pytest.approx(float(share[0]))
    assert found["high_frequency_ratio"] == pytest.approx(float(share[0] / share[1]))
    rms = (now - start).square().mean((1, 2, 3)).sqrt().mean()
    assert found["base_distance"] == pytest.approx(float(rms), abs=1e-3)  # after rounding to eight bits
    spread = [(x[0::2] - x[1::2]).square().mean((1, 2, 3)).sqrt().mean() for x in (now, start)]
    assert found["diversity_ratio"] == pytest.approx(float(spread[0] / spread[1]), rel=1e-5)
    assert found["trained_change/length"] == pytest.approx(float(now.mean() - start.mean()), abs=1e-6)
    assert seen == PROMPTS * 2


def test_diversity_is_that_of_one_prompt_and_not_over_prompts():
    pictures = torch.stack([torch.full((3, 8, 8), shade) for shade in (0.1, 0.3, 0.8, 0.6)])
    assert _read(pictures).numbers["diversity"] == pytest.approx(0.2)
    assert "diversity" not in _read(pictures, samples=1).numbers


def test_a_file_gives_back_the_same_reading_unless_it_is_about_something_else(tmp_path):
    path, about = tmp_path / "monitor" / "base.npz", {"prompts": PROMPTS, "cut": 0.5}
    reading = _read(_pictures())
    assert Reading.load(path, about) is None
    reading.save(path, about)
    again = Reading.load(path, about)
    assert again is not None and again.numbers == reading.numbers
    assert torch.equal(again.pictures, reading.pictures)
    assert Reading.load(path, about | {"cut": 0.6}) is None
    path.write_bytes(path.read_bytes()[:-200])
    assert Reading.load(path, about) is None
    path.write_text("no archive")
    assert Reading.load(path, about) is None


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3, 1), r"the reward reward/x returned shape \(3, 1\) for 3 pictures of the monitor"),
        (torch.tensor([0.0, math.nan, 1.0]), "the reward reward/x returned NaN or infinity"),
    ],
)
def test_a_reward_that_gives_no_number_is_an_error(scores, message):
    with pytest.raises(UserError, match=message):
        _read(_pictures(), {"reward/x": as_feedback(lambda images, prompts: scores, name="x")})


def test_a_start_without_detail_or_diversity_gives_no_scale():
    flat = torch.linspace(0.1, 0.9, 4)[:, None, None, None].expand(4, 3, 8, 8)
    with pytest.raises(UserError, match=r"no detail above monitor\.cut"):
        require_scale(_read(flat))
    twins = _pictures()[[0, 0, 1, 1]]
    with pytest.raises(UserError, match=r"whatever the noise.*set monitor\.seeds=1"):
        require_scale(_read(twins))
    require_scale(_read(twins, samples=1))
