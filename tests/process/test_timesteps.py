from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from unifl.errors import UserError
from unifl.process.timesteps import index_of_time, time_grid, time_of_index

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 16, 20, 25, 30, 37, 50, 100, 250, 333, 500, 501, 999)


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_indices_are_those_of_diffusers(scheduler_class, spacing, offset):
    scheduler = scheduler_class(timestep_spacing=spacing, steps_offset=offset)
    for n in COUNTS:
        scheduler.set_timesteps(n)
        grid = time_grid(n, spacing, steps_offset=offset)
        assert len(grid) == n + 1 and grid[-1] == 0 and (grid.diff() < 0).all()
        # beyond n entries the scheduler lists index -1, see the docstring of time_grid
        assert index_of_time(grid[:-1]).tolist() == [float(i) for i in scheduler.timesteps[:n]]


def test_the_extra_trailing_index_of_diffusers_is_not_visited():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(61)
    assert len(scheduler.timesteps) == 62 and scheduler.timesteps[-1] == -1
    assert index_of_time(time_grid(61, "trailing")[:-1]).tolist() == scheduler.timesteps[:61].tolist()


def test_other_numbers_of_training_timesteps():
    scheduler = DDIMScheduler(num_train_timesteps=100, timestep_spacing="trailing")
    scheduler.set_timesteps(12)
    assert index_of_time(time_grid(12, "trailing", 100)[:-1], 100).tolist() == scheduler.timesteps.tolist()


def test_trailing_starts_at_pure_noise_and_leading_below():
    assert time_grid(4, "trailing").tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert time_grid(4, "leading").tolist() == pytest.approx([0.752, 0.502, 0.252, 0.002, 0])


def test_every_index_survives_the_way_to_time_and_back():
    index = torch.arange(1000)
    assert torch.equal(index_of_time(time_of_index(index)), index.float())
    assert index_of_time(torch.tensor([0.0, 0.0005])).tolist() == [0, 0]
    assert index_of_time(torch.tensor([0.5005])).item() == pytest.approx(499.5)


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_step_counts_without_meaning_are_refused(num_steps):
    with pytest.raises(UserError, match="choose 1 to 1000"):
        time_grid(num_steps, "trailing")


def test_an_offset_past_the_last_index_is_refused():
    with pytest.raises(UserError, match="trailing"):
        time_grid(1000, "leading", steps_offset=1)
    assert len(time_grid(1000, "leading", steps_offset=0)) == 1001
