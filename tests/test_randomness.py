from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unifl.errors import UserError
from unifl.randomness import Key, row_order

LARGE = Key(seed=3, step=7, indices=tuple(range(4096)))

PINNED_INTEGERS = [350, 256]
PINNED_SHARED = 982
PINNED_FRACTION = 0.3584200
PINNED_NORMAL = [[-0.0181342, -1.3943149], [-0.3573768, -0.7819449]]
PINNED_ROWS = [3, 4, 2, 1, 0]


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 6), st.data())
def test_noise_depends_on_neither_batch_size_nor_order(seed, step, size, data):
    indices = tuple(data.draw(st.lists(st.integers(0, 10**7), min_size=size, max_size=size)))
    key = Key(seed, step, indices)
    cut = data.draw(st.integers(0, size))
    together = key.normal("latents", (3, 2))
    apart = torch.cat(
        [Key(seed, step, part).normal("latents", (3, 2)) for part in (indices[:cut], indices[cut:])]
    )
    backwards = Key(seed, step, indices[::-1]).normal("latents", (3, 2)).flip(0)
    assert torch.equal(together, apart)
    assert torch.equal(together, backwards)
    alone = [Key(seed, step, (index,)).integers("k", 0, 6) for index in indices]
    assert torch.equal(key.integers("k", 0, 6), torch.cat(alone))


def test_every_part_of_the_address_changes_every_kind_of_draw():
    keys = [
        (Key(3, 7, (0, 1)), "a"),
        (Key(4, 7, (0, 1)), "a"),
        (Key(3, 8, (0, 1)), "a"),
        (Key(3, 7, (0, 1)), "b"),
    ]
    for draw in (
        lambda key, purpose: key.normal(purpose, (8,))[0].tolist(),
        lambda key, purpose: key.integers(purpose, 0, 2**40).tolist(),
        lambda key, purpose: key.shared_integer(purpose, 0, 2**40),
        lambda key, purpose: key.shared_uniform(purpose),
    ):
        results = [draw(key, purpose) for key, purpose in keys]
        assert all(results[i] != results[j] for i in range(4) for j in range(i))
    noise = keys[0][0].normal("a", (8,))
    assert not torch.equal(noise[0], noise[1])


def test_noise_is_standard_normal_and_samples_are_independent():
    noise = LARGE.normal("latents", (32,))
    assert abs(noise.mean()) < 0.01  # 131,072 draws: standard error 0.003
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1
    between = (noise[:-1] * noise[1:]).mean(dim=1)
    assert abs(between.mean()) < 0.015


def test_integers_and_fractions_are_uniform_over_their_range():
    integers = LARGE.integers("k", -2, 4)
    assert integers.dtype == torch.int64
    counts = torch.bincount(integers + 2, minlength=6)
    assert counts.numel() == 6
    assert counts.min() > 4096 / 6 * 0.85  # standard deviation of a count is 24 of 683
    fractions = torch.tensor([Key(3, step, ()).shared_uniform("u") for step in range(4096)])
    assert 0 <= fractions.min() < 0.01 and 0.99 < fractions.max() < 1
    assert abs(fractions.mean() - 0.5) < 0.02
    assert torch.histc(fractions, bins=8, min=0, max=1).min() > 512 * 0.8


def test_shared_draws_ignore_the_samples():
    parts = [LARGE, Key(3, 7, (0,)), Key(3, 7, (10**6,)), Key(3, 7, ())]
    assert len({part.shared_integer("length", 0, 10**9) for part in parts}) == 1
    assert len({part.shared_uniform("guidance") for part in parts}) == 1
    drawn = {Key(3, step, ()).shared_integer("length", 2, 5) for step in range(50)}
    assert drawn == {2, 3, 4}


def test_dtype_and_device_only_round():
    key = Key(0, 0, (5, 6))
    exact = key.normal("latents", (4, 4))
    assert torch.equal(key.normal("latents", (4, 4), dtype=torch.bfloat16), exact.bfloat16())
    assert torch.equal(key.normal("latents", (4, 4), dtype=torch.float64), exact.double())
    assert key.normal("latents", (4, 4), device="meta").device.type == "meta"


def test_values_are_pinned():
    """A change of these numbers changes every run that anybody ever recorded."""
    key = Key(seed=1, step=2, indices=(3, 4))
    assert key.integers("k", 0, 1000).tolist() == PINNED_INTEGERS
    assert key.shared_integer("k", 0, 1000) == PINNED_SHARED
    assert key.shared_uniform("u") == pytest.approx(PINNED_FRACTION)
    torch.testing.assert_close(key.normal("x", (2,)), torch.tensor(PINNED_NORMAL), atol=1e-6, rtol=0)
    assert [row_order(5, 0, "prompts", index) for index in range(5)] == PINNED_ROWS


@given(st.integers(1, 40), st.integers(0, 1000))
def test_every_row_is_read_once_per_epoch(n_rows, seed):
    for epoch in range(3):
        rows = [row_order(n_rows, seed, "prompts", epoch * n_rows + place) for place in range(n_rows)]
        assert sorted(rows) == list(range(n_rows))


def test_epochs_purposes_and_seeds_are_shuffled_differently():
    def order(seed: int, purpose: str, epoch: int) -> list[int]:
        return [row_order(50, seed, purpose, epoch * 50 + place) for place in range(50)]

    orders = [order(0, "a", 0), order(0, "a", 1), order(0, "b", 0), order(1, "a", 0), list(range(50))]
    assert all(orders[i] != orders[j] for i in range(5) for j in range(i))


def test_errors_say_what_is_empty():
    with pytest.raises(UserError, match=r"empty range \[5, 5\) for 'k'"):
        LARGE.integers("k", 5, 5)
    with pytest.raises(UserError, match=r"empty range \[5, 4\) for 'k'"):
        LARGE.shared_integer("k", 5, 4)
    with pytest.raises(UserError, match="no rows to draw from for 'prompts'"):
        row_order(0, 0, "prompts", 0)
