"""Captions, the split and the layout of scenes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifl.errors import UserError
from unifl.world.scenes import (
    QUALITIES,
    SHAPES,
    Description,
    Thing,
    parse,
    place,
    random_description,
    sample_prompts,
    sample_scenes,
)


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 3))
def test_captions_are_read_back(seed: int, number: int) -> None:
    wanted = random_description(np.random.default_rng(seed), number)
    assert parse(wanted.caption) == wanted


def test_mirrored_relations_are_one_combination() -> None:
    a, b = Thing("small", "red", "circle"), Thing("large", "blue", "star")
    left = Description((a, b), "left of", "flat", "white")
    right = Description((b, a), "right of", "flat", "white")
    other = Description((b, a), "left of", "flat", "white")
    assert left.key == right.key != other.key
    assert left.held_out == right.held_out


def test_split_is_disjoint_but_shares_its_parts() -> None:
    train = {parse(p).key for p in sample_prompts(4000, seed=1, held_out=False)}
    held_out = [parse(p) for p in sample_prompts(1000, seed=1, held_out=True)]
    assert not train & {d.key for d in held_out}
    parts = {thing for key in train for thing in key.split("|")}
    assert all(str(thing) in parts for d in held_out for thing in d.things)


def test_a_fifth_of_all_combinations_is_held_out() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([random_description(rng, 2).held_out for _ in range(4000)])
    assert 0.17 < share < 0.23


def test_unknown_captions_are_refused_with_an_example() -> None:
    with pytest.raises(UserError, match="small red circle left of"):
        parse("a photo of a cat")


def test_scenes_do_not_depend_on_how_many_are_drawn() -> None:
    assert sample_scenes(5, seed=3, held_out=False) == sample_scenes(9, seed=3, held_out=False)[:5]


def test_layout_quality_orders_disorder() -> None:
    wanted = Description((Thing("large", "red", SHAPES[1]),), None, "flat", "white")

    def disorder(level: float) -> float:
        rng = np.random.default_rng(0)
        quality = tuple(level if axis == "layout" else 0.5 for axis in QUALITIES)
        placed = [place(wanted, rng, quality).objects[0] for _ in range(50)]
        return float(np.mean([np.hypot(p.x - 0.5, p.y - 0.5) + abs(p.angle) for p in placed]))

    assert disorder(1.0) == pytest.approx(0, abs=1e-9)
    assert disorder(0.2) > disorder(0.6) > disorder(0.9) > 0
