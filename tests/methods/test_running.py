"""Means that are carried from one step to the next: whatever the micro-batches, the processes and resumes."""

from __future__ import annotations

import multiprocessing
import socket

import pytest
import torch

from unifl.methods.running import StepMean

VALUES = torch.tensor([[1.0, 2.0, 4.0, 9.0], [-3.0, 0.5, 0.0, 2.5]])
"""Two training steps of four rows."""


def walked(pieces, steps=VALUES):
    """The mean after each step, rows coming in pieces of this size."""
    mean, found = StepMean(), []
    for step, values in enumerate(steps):
        for piece in values.split(pieces):
            mean.enter(step)
            found.append(mean.value)
            mean.add(piece)
    mean.enter(len(steps))
    return mean, [*found, mean.value]


def test_a_step_sees_the_mean_of_the_step_before_alone():
    mean, found = walked(4)
    assert found == [None, 4.0, 0.0] and mean.steps == 2


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_micro_batches_change_nothing(pieces):
    mean, found = walked(pieces)
    number = -(-4 // pieces)
    assert found == [None] * number + [4.0] * number + [0.0] and mean.steps == 2


def test_it_goes_on_from_its_state_in_the_middle_of_a_step():
    first = StepMean()
    for step, piece in ((0, VALUES[0]), (1, VALUES[1, :3])):
        first.enter(step)
        first.add(piece)
    second = StepMean()
    second.load_state_dict(first.state_dict())
    assert second.value == 4.0 and second.state_dict() == first.state_dict()
    for mean in (first, second):
        mean.enter(1)
        mean.add(VALUES[1, 3:])
        mean.enter(2)
    assert first.value == second.value == 0.0


def test_a_step_without_rows_leaves_the_mean_and_half_precision_is_added_exactly():
    mean, _ = walked(4)
    mean.enter(3)
    mean.enter(4)
    assert mean.value == 0.0 and mean.steps == 2
    mean.add(torch.tensor([1.0, 2**-7], dtype=torch.bfloat16).repeat(1000))
    mean.enter(5)
    assert mean.value == (1 + 2**-7) / 2


def _free_port():
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


def _worker(rank, port, folder):
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    # the rows of a step go to the processes in pieces of unlike sizes
    mine = [values[:1] if rank == 0 else values[1:] for values in VALUES]
    mean, found = StepMean(), []
    for step, values in enumerate(mine):
        mean.enter(step)
        found.append(mean.value)
        mean.add(values)
    mean.enter(len(mine))
    torch.save([*found, mean.value, mean.steps], folder / f"{rank}")


def test_two_processes_equal_one(tmp_path):
    port, context = _free_port(), multiprocessing.get_context("fork")
    workers = [context.Process(target=_worker, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert [torch.load(tmp_path / f"{rank}") for rank in range(2)] == [[None, 4.0, 0.0, 2]] * 2
