from __future__ import annotations

import pytest

from unifl import config
from unifl.errors import UserError
from unifl.randomness import Key
from unifl.sampling import (
    FixedGuidance,
    NoGuidance,
    RangeGuidance,
    RolloutConfig,
    draw_guidance,
    draw_guidance_each,
    halves,
)


def test_draws():
    keys = [Key(0, step, (1, 2)) for step in range(200)]
    assert {draw_guidance(NoGuidance(), key, "g") for key in keys} == {1.0}
    assert {draw_guidance(FixedGuidance(scale=4.0), key, "g") for key in keys} == {4.0}
    drawn = [draw_guidance(RangeGuidance(low=2.0, high=6.0), key, "g") for key in keys]
    assert 2 <= min(drawn) < 2.2 and 5.8 < max(drawn) <= 6 and 3.7 < sum(drawn) / 200 < 4.3
    # one draw per step, whoever draws it
    assert draw_guidance(RangeGuidance(), Key(0, 3, (7,)), "g") == draw_guidance(
        RangeGuidance(), keys[3], "g"
    )


def test_draws_for_each_sample():
    key = Key(0, 3, tuple(range(400)))
    scales = draw_guidance_each(RangeGuidance(low=2.0, high=6.0), key, "w")
    assert 2 <= float(scales.min()) < 2.1 and 5.9 < float(scales.max()) < 6
    part = draw_guidance_each(RangeGuidance(low=2.0, high=6.0), Key(0, 3, (7, 9)), "w")
    assert part.tolist() == [float(scales[7]), float(scales[9])]
    assert draw_guidance_each(FixedGuidance(scale=3.0), Key(0, 0, (0, 1)), "w").tolist() == [3.0, 3.0]
    for none in (NoGuidance(), FixedGuidance(scale=1.0), RangeGuidance(low=1.0, high=1.0)):
        assert draw_guidance_each(none, key, "w") == 1.0  # a plain number: one half is enough


def test_halves():
    assert (
        halves(NoGuidance())
        == halves(FixedGuidance(scale=1.0))
        == halves(RangeGuidance(low=1.0, high=1.0))
        == 1
    )
    assert halves(FixedGuidance(scale=0.0)) == halves(RangeGuidance()) == 2


def test_written_in_yaml():
    read = config.load({"guidance": {"kind": "range", "low": 1, "high": 4}, "stop": [1, 2]}, RolloutConfig)
    assert read.guidance == RangeGuidance(low=1.0, high=4.0) and read.stop == (1, 2)
    assert config.load(config.dump(read), RolloutConfig) == read


def test_errors():
    with pytest.raises(UserError, match="0 or more"):
        FixedGuidance(scale=-1.0)
    with pytest.raises(UserError, match="is empty"):
        RangeGuidance(low=3.0, high=2.0)
