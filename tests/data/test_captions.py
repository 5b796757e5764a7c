from __future__ import annotations

import pytest

from unifl.data import drop_captions
from unifl.data.captions import dropped_captions
from unifl.errors import UserError
from unifl.randomness import Key

NAMES = [f"caption {n}" for n in range(2000)]


def test_about_as_many_are_dropped_as_asked_for():
    key = Key(0, 3, tuple(range(2000)))
    for probability in (0.1, 0.5, 0.9):
        changed = drop_captions(NAMES, probability, key)
        assert all(new in ("", old) for new, old in zip(changed, NAMES, strict=True))
        assert (
            abs(changed.count("") / 2000 - probability) < 4 * (probability * (1 - probability) / 2000) ** 0.5
        )
    assert drop_captions(NAMES, 0.0, key) == NAMES
    assert drop_captions(NAMES, 1.0, key) == [""] * 2000


def test_a_draw_belongs_to_seed_step_and_row_and_not_to_the_batch():
    whole = dropped_captions(Key(0, 3, tuple(range(64))), 0.5)
    parts = [dropped_captions(Key(0, 3, tuple(range(start, start + 16))), 0.5) for start in range(0, 64, 16)]
    assert whole.tolist() == [gone for part in parts for gone in part.tolist()]
    for other in (Key(1, 3, tuple(range(64))), Key(0, 4, tuple(range(64)))):
        assert dropped_captions(other, 0.5).tolist() != whole.tolist()


def test_a_higher_probability_drops_the_same_and_more():
    key = Key(0, 0, tuple(range(200)))
    few, many = dropped_captions(key, 0.2), dropped_captions(key, 0.6)
    assert bool((few <= many).all()) and int(few.sum()) < int(many.sum())


def test_what_makes_no_sense():
    with pytest.raises(UserError, match=r"dropping a caption is 1\.5; it must be in \[0, 1\]"):
        drop_captions(["a"], 1.5, Key(0, 0, (0,)))
    with pytest.raises(UserError, match="2 captions for 1 rows"):
        drop_captions(["a", "b"], 0.5, Key(0, 0, (0,)))
