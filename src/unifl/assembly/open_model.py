"""A model argument becomes a generator that draws, with the settings it should be sampled with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unifl.assembly import world_names
from unifl.assembly.device import chosen_device
from unifl.assembly.locate import Located, locate_model
from unifl.assembly.recipe import ModelConfig, SamplingConfig
from unifl.methods.lcd_config import LCDConfig
from unifl.models import Generator, load_generator, load_user_adapter, user_training_of
from unifl.models.generator import MixedPrecision
from unifl.process import Spacing

_STEPS = 20
_LCM_LORA_GUIDANCE = 2.0  # of a student that is not told its scale and has the teacher's built in
_GUIDANCE, _GUIDANCE_XL = 7.5, 5.0  # what the diffusers pipelines of these families take by default


@dataclass(frozen=True)
class Opened:
    """A loaded model.

    Attributes:
        generator: Draws with the role "student".
        sampling: How.
        name: Short, for tables and file names.
    """

    generator: Generator
    sampling: SamplingConfig
    name: str

    @property
    def id(self) -> str:
        """Name and steps, as in `result.json`: "base@20"."""
        return f"{self.name}@{self.sampling.num_steps}"


def open_model(
    name: str | Path,
    *,
    lora: str | Path | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    spacing: Spacing | None = None,
    negative_prompt: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    mixed_precision: MixedPrecision = "no",
    resolution: int | None = None,
    variant: str | None = None,
    revision: str | None = None,
    config: str | None = None,
) -> Opened:
    """Find and load a model.

    Args:
        name: See `unifl.assembly.locate.locate_model`.
        lora: A LoRA on top.
        num_steps: None takes what the run that made the model says, else 20.
        guidance: None takes what that run says, what is on record for the packaged model, else what the diffusers
            pipeline of the family takes.
        spacing: None likewise, else that of the model's scheduler.
        negative_prompt: Of the unconditional half.
        device: "auto" takes a GPU if there is one.
        dtype: Of the weights.
        mixed_precision: Precision of network evaluations; "no" is that of the weights.
        resolution: Pixels; None takes what the run says, else the size the model was trained at.
        variant: Of the weight files.
        revision: Of a hub repository.
        config: For a single file, see `load_generator`.

    Raises:
        UserError: No such model, or settings that make no sense.
    """
    found = locate_model(name, lora=lora)
    train = None if found.users is None else user_training_of(found.users)
    before = found.model or ModelConfig(pretrained_model_name_or_path=found.source)
    generator = load_generator(
        found.source,
        train=train,
        roles=(),
        lora=found.lora,
        device=chosen_device(device),
        dtype=dtype,
        # a user adapter is float32 over weights of any kind
        mixed_precision="bf16" if train is not None and dtype != torch.float32 else mixed_precision,
        resolution=resolution or before.resolution,
        revision=revision or before.revision,
        variant=variant or before.variant,
        config=config or before.config,
    )
    if found.users is not None:
        load_user_adapter(generator, found.users)
    sampling = _sampling(found, generator, num_steps)
    changes = {"guidance": guidance, "spacing": spacing, "negative_prompt": negative_prompt}
    chosen = {key: value for key, value in changes.items() if value is not None}
    sampling = replace(sampling, **chosen)  # type: ignore[arg-type]
    if isinstance(found.method, LCDConfig):
        _warn_outside(found.method, generator, sampling, found.name)
    return Opened(generator, sampling, found.name)


def _warn_outside(method: LCDConfig, generator: Generator, sampling: SamplingConfig, name: str) -> None:
    """Tell what a distilled model was trained for, where it is asked for something else."""
    low, high = method.sampled_steps
    if not low <= sampling.num_steps <= high:
        meant = f"{low}" if low == high else f"{low} to {high}"
        warnings.warn(
            f"{name} was distilled for {meant} steps and is sampled with {sampling.num_steps}", stacklevel=3
        )
    low_scale, high_scale = (
        method.guidance_range if generator.embeds_guidance() else (1.0, _LCM_LORA_GUIDANCE)
    )
    if not low_scale <= sampling.guidance <= high_scale:
        warnings.warn(
            f"{name} was distilled for guidance {low_scale:g} to {high_scale:g} and is sampled with "
            f"{sampling.guidance:g}"
            + ("" if generator.embeds_guidance() else ", which guides a second time"),
            stacklevel=3,
        )


def _sampling(found: Located, generator: Generator, num_steps: int | None) -> SamplingConfig:
    if found.sampling is not None:
        return found.sampling if num_steps is None else replace(found.sampling, num_steps=num_steps)
    steps = _STEPS if num_steps is None else num_steps
    if found.is_world:
        return SamplingConfig(num_steps=steps, **world_names.settings(steps))
    guidance = _GUIDANCE_XL if generator.is_xl else _GUIDANCE
    return SamplingConfig(num_steps=steps, guidance=guidance, spacing=generator.spacing)
