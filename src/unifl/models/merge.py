"""A role as an ordinary diffusers pipeline: adapters folded into the weights, everything else shared."""

from __future__ import annotations

import copy
from typing import Any

from diffusers import DDIMScheduler, LCMScheduler, SchedulerMixin, TCDScheduler
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from unifl.errors import UserError
from unifl.models.adapters import AdapterRoles
from unifl.models.generator import Generator
from unifl.models.roles import STUDENT
from unifl.models.schedule import FlowSchedule, require_diffusion
from unifl.models.user import UserRoles
from unifl.process import ConsistencySampler, Spacing
from unifl.process.flow_map import TIMESTEP_SCALING


def merged_pipeline(
    generator: Generator,
    *,
    role: str = STUDENT,
    spacing: Spacing | None = None,
    consistency: ConsistencySampler | None = None,
) -> Any:
    """A pipeline of the generator's class that draws as a role does, and knows nothing of adapters.

    Only the layers that carry adapters are copied; all other weights are shared with the generator, so the result
    shows the model of this moment and should be saved or dropped before training goes on.

    Args:
        generator: Left as it is.
        role: Whose weights.
        spacing: Gives the pipeline a scheduler with these timesteps, see `sampling_scheduler`; None keeps its own.
        consistency: Gives it the scheduler of a consistency model in place of that.

    Raises:
        UserError: No such role, a scheduler that does not go with a flow model, or a model that is told for whom it
            draws, which no plain weights can do.
    """
    generator.roles.require(role)
    if isinstance(generator.roles, UserRoles):
        raise UserError(
            "a user adapter cannot be folded into the weights, since it needs the user with every picture; save it "
            "with save_user_adapter, and load it on top of the pipeline"
        )
    pipeline = copy.copy(generator.pipeline)
    for name in generator.roles.components:
        module = generator.roles.module(name, role)
        if isinstance(generator.roles, AdapterRoles):
            module = _merged(module, generator.roles.adapters(name, role))
        if module is not getattr(pipeline, name):
            setattr(pipeline, name, module)
    if consistency is not None:
        pipeline.scheduler = consistency_scheduler(generator, consistency)
    elif spacing is not None:
        pipeline.scheduler = sampling_scheduler(generator, spacing)
    return pipeline


def consistency_scheduler(generator: Generator, sampler: ConsistencySampler) -> SchedulerMixin:
    """The diffusers scheduler whose timesteps and steps are those of a consistency sampler.

    gamma of `kind: tcd` is no setting of a scheduler: give it to the pipeline's call, as `eta`.

    Raises:
        UserError: A flow model.
    """
    require_diffusion(generator.schedule, wanted_by="a consistency sampler")
    scheduler = {"lcm": LCMScheduler, "tcd": TCDScheduler}[sampler.kind]
    return scheduler.from_config(
        generator.pipeline.scheduler.config,
        original_inference_steps=sampler.origin_steps,
        timestep_scaling=TIMESTEP_SCALING,
        clip_sample=False,
        thresholding=False,
    )


def sampling_scheduler(generator: Generator, spacing: Spacing) -> SchedulerMixin:
    """The diffusers scheduler whose timesteps are those of this project's sampler: DDIM, or a flow model's own.

    With leading spacing, and with trailing spacing where n divides T, its steps are the same too. With any other n
    trailing steps differ a little: diffusers' DDIM goes down T // n indices, which misses the next timestep of its
    own trailing grid, and here a step ends where the next one starts (docs/conformance.md).

    The last step goes to sigma = 0 (`set_alpha_to_one`), and x0 is not clipped: latents are not pictures.

    Raises:
        UserError: Leading spacing for a flow model.
    """
    if isinstance(generator.schedule, FlowSchedule):
        generator.schedule.check_spacing(spacing)
        return copy.deepcopy(generator.pipeline.scheduler)
    return DDIMScheduler.from_config(
        generator.pipeline.scheduler.config,
        timestep_spacing=spacing,
        steps_offset=generator.steps_offset,
        set_alpha_to_one=True,
        clip_sample=False,
    )


def _merged(module: nn.Module, adapters: list[str]) -> Any:
    """The module with its adapter layers replaced by plain ones, sharing all other weights."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    clone: Any = copy.deepcopy(module, shared)
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in layers:
        # a true copy, since merging changes weights in place
        own = copy.deepcopy(layer)
        own.merge(adapter_names=[adapter for adapter in adapters if adapter in _adapters_of(own)])
        parent, _, attribute = name.rpartition(".")
        setattr(clone.get_submodule(parent), attribute, own.get_base_layer())
    if layers:
        # without these marks save_pretrained would look for adapters
        clone._hf_peft_config_loaded = False
        del clone.peft_config
    return clone


def _adapters_of(layer: BaseTunerLayer) -> set[str]:
    return set(getattr(layer, "lora_A", {}))
