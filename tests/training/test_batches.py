"""Which process sees which rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_toy import Toy

from unifl.data import Batch, Sample
from unifl.training.batches import Layout, draw_micro_batches

SMALL = st.integers(1, 5)


@given(rows=SMALL, accumulation=SMALL, processes=SMALL, step=st.integers(0, 1000))
def test_every_cut_covers_the_same_indices_in_order(rows, accumulation, processes, step):
    seen = []
    for process in range(processes):
        layout = Layout(rows, accumulation, processes, process)
        for micro in range(accumulation):
            seen += layout.indices(step, micro)
    size = rows * accumulation * processes
    assert seen == list(range(step * size, (step + 1) * size))


def test_rows_do_not_depend_on_the_cut():
    toy = Toy()
    one = draw_micro_batches(toy, Layout(8, 1), seed=5, step=3)[0]
    parts = [
        batch
        for process in range(2)
        for batch in draw_micro_batches(toy, Layout(2, 2, 2, process), seed=5, step=3)
    ]
    assert [word for part in parts for word in part.data["words"]] == one.data["words"]
    noise = torch.cat([part.key.normal("x", (3,)) for part in parts])
    assert torch.equal(noise, one.key.normal("x", (3,)))
    other = draw_micro_batches(toy, Layout(8, 1), seed=6, step=3)[0]
    assert other.data["words"] != one.data["words"]


def test_annotated_pictures_come_as_a_batch():
    toy = Toy()
    toy.sources = {"images": [Sample(torch.full((3, 2, 2), n / 4), f"picture {n}") for n in range(4)]}
    batch = draw_micro_batches(toy, Layout(4, 1), seed=0, step=0)[0].data["images"]
    assert isinstance(batch, Batch) and batch.images.shape == (4, 3, 2, 2)
    order = [int(prompt.split()[1]) for prompt in batch.prompts]
    assert sorted(order) == [0, 1, 2, 3]
    assert [float(image.mean()) for image in batch.images] == [n / 4 for n in order]


@pytest.mark.parametrize("seed", [0, 1])
def test_scratch_starts_empty(seed):
    batches = draw_micro_batches(Toy(), Layout(2, 2), seed=seed, step=0)
    batches[0].scratch["x"] = 1
    assert batches[1].scratch == {}
