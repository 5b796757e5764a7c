from __future__ import annotations

import diffusers
import pytest
import torch

from unifl.errors import UserError
from unifl.models import make_generator
from unifl.models.schedule import FlowSchedule, require_diffusion
from unifl.process import Flow, time_grid
from unifl.testing import tiny_pipeline


def shifted(u, shift):
    return shift * u / (1 + (shift - 1) * u)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 4, 28, 1000])
def test_a_flow_visits_the_sigmas_of_its_scheduler(shift, num_steps):
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = FlowSchedule(own)
    times = schedule.times(num_steps, "trailing")
    own.set_timesteps(num_steps)
    assert torch.equal(times, own.sigmas) and times.dtype == torch.float32
    assert times[0] == 1 and times[-1] == 0 and bool((times.diff() < 0).all())
    # by hand: equal steps from 1 down to the smallest sigma of the table, shifted once more
    smallest = shifted(1 / 1000, shift)
    even = torch.linspace(1, smallest, num_steps, dtype=torch.float64)
    torch.testing.assert_close(times[:-1].double(), shifted(even, shift), rtol=1e-6, atol=1e-7)
    # what the network is told is what the pipeline tells it, bit for bit
    assert torch.equal(schedule.timestep(times[:-1]), own.timesteps)


def test_a_flow_is_straight_and_its_training_times_are_shifted():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = FlowSchedule(scheduler)
    assert isinstance(schedule.process, Flow) and schedule.kind == "flow" and schedule.shift == 3.0
    index = torch.arange(1000)
    # the table of the scheduler begins with noise
    torch.testing.assert_close(schedule.time_of_index(index), scheduler.sigmas.flip(0), rtol=1e-6, atol=0)
    assert float(schedule.time_of_index(torch.tensor(499))) == pytest.approx(0.75)  # u = 1/2
    x0, eps = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    t = scheduler.sigmas[[100, 900]]
    expected = scheduler.scale_noise(x0, scheduler.timesteps[[100, 900]], eps)
    torch.testing.assert_close(schedule.process.add_noise(x0, eps, t), expected)


def test_asking_for_times_leaves_the_scheduler_of_the_pipeline_alone():
    generator = make_generator(tiny_pipeline("sd3"))
    generator.pipeline.scheduler.set_timesteps(5)
    before = generator.pipeline.scheduler.timesteps.clone()
    generator.schedule.times(9, "trailing")
    assert torch.equal(generator.pipeline.scheduler.timesteps, before)


def test_a_diffusion_model_visits_the_grid_of_before():
    generator = make_generator(tiny_pipeline("sd15"))
    for spacing in ("leading", "trailing"):
        assert torch.equal(generator.schedule.times(7, spacing), time_grid(7, spacing, 1000, 1))
    assert generator.schedule.time_of_index(torch.tensor([0, 999])).tolist() == pytest.approx([0.001, 1.0])
    assert generator.schedule.timestep(torch.tensor([0.5])).tolist() == [499.0]
    require_diffusion(generator.schedule, wanted_by="this")


def test_settings_of_a_flow_scheduler_that_are_refused():
    for setting in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"):
        pipeline = tiny_pipeline("sd3")
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{setting: True})
        with pytest.raises(UserError, match=f"scheduler of this model has {setting}.*set it to false"):
            make_generator(pipeline)
    pipeline = tiny_pipeline("sd3")
    pipeline.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(UserError, match=r"DDIMScheduler does not go with a flow model.*pipeline\.scheduler"):
        make_generator(pipeline)


def test_times_that_a_flow_does_not_have():
    schedule = make_generator(tiny_pipeline("sd3")).schedule
    with pytest.raises(UserError, match="num_steps is 0; choose 1 to 1000"):
        schedule.times(0, "trailing")
    with pytest.raises(UserError, match="spacing is 'leading'.*set spacing to trailing"):
        schedule.times(4, "leading")
    with pytest.raises(UserError, match="lcd counts in the timesteps of a diffusion model.*flow-models"):
        require_diffusion(schedule, wanted_by="lcd")
