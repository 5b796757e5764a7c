"""LoRA on the networks of a pipeline: which layers, and the adapters to add."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import LoraConfig
from torch import nn

from unifl.errors import UserError, nearest
from unifl.models.denoiser import UNET, denoiser_name, unread_parts
from unifl.models.prompts import trainable_text_encoders

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Attention projections of a UNet; in a transformer with joint attention, those of the picture."""

JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Of a transformer with joint attention: those of the picture and of the text."""

CONVOLUTION = ("conv1", "conv2", "conv_shortcut")
"""Convolutions of its residual blocks."""

TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Attention projections of a text encoder."""


@dataclass(kw_only=True)
class LoraTraining:
    """Train low-rank adapters; the model itself stays as it is and serves as the reference."""

    kind: Literal["lora"] = "lora"
    rank: int = 16
    """Rank r of the update B A of a weight."""
    alpha: int | float | None = None
    """The update is multiplied by alpha / rank; none means alpha = rank."""
    target_modules: list[str] = field(default_factory=lambda: list(ATTENTION))
    """Layers of the denoiser that get an adapter: ends of their paths, such as `to_q` or `attn2.to_k`."""
    conv: bool = False
    """Adapters on the convolutions of the residual blocks as well."""
    text_encoder: bool = False
    """Adapters on the attention of the text encoders as well."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """How A starts: normal with deviation 1 / rank, or Kaiming uniform. B starts at 0, so the student starts as the
    model it was given."""


def lora_configs(pipeline: Any, settings: LoraTraining, *, is_xl: bool) -> dict[str, LoraConfig]:
    """The student's adapters by component.

    Raises:
        UserError: A rank below 1, or target modules that the denoiser does not have.
    """
    if settings.rank < 1:
        raise UserError(f"LoRA rank is {settings.rank}; choose 1 or more (4 to 128 are common)")
    targets = [*settings.target_modules, *(CONVOLUTION if settings.conv else ())]
    denoiser = denoiser_name(pipeline)
    network = getattr(pipeline, denoiser)
    check_targets(network, targets, of=denoiser)
    idle = [rf"{re.escape(path)}(\..*)?" for path in unread_parts(network)]
    configs = {denoiser: _config(settings, targets, exclude="|".join(idle) or None)}
    if settings.text_encoder:
        for name in trainable_text_encoders(pipeline):
            # A regular expression fits both layouts of the CLIP encoder in transformers, with and without a
            # leading `text_model`.
            unread = [rf".*\b{path}\..*" for path in unread_layers(pipeline, name, is_xl=is_xl)]
            configs[name] = _config(settings, list(TEXT_ATTENTION), exclude="|".join(unread) or None)
    return configs


def unread_layers(pipeline: Any, text_encoder: str, *, is_xl: bool) -> list[str]:
    """Paths within a text encoder whose output nothing reads, so that their weights would never train.

    SDXL reads the penultimate layer. Only its second encoder goes on to the end, for the pooled embedding.
    """
    if not is_xl or text_encoder != "text_encoder":
        return []
    last = pipeline.text_encoder.config.num_hidden_layers - 1
    return [f"encoder.layers.{last}", "final_layer_norm"]


def check_targets(module: nn.Module, targets: Sequence[str], *, of: str) -> None:
    """Refuses names that no linear or convolutional layer of the module ends in.

    Args:
        module: The denoiser.
        targets: Ends of paths within it.
        of: Its name in the pipeline.

    Raises:
        UserError: With the nearest names that would fit.
    """
    if not targets:
        raise UserError(f"LoRA has no target modules; name some, for example {', '.join(ATTENTION)}")
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    # a layer that carries the user's LoRA already is a wrapper, with the layer itself inside
    paths = [name.removesuffix(".base_layer") for name in layers if ".lora_" not in name]
    for target in targets:
        if any(path == target or path.endswith(f".{target}") for path in paths):
            continue
        ends = {".".join(path.split(".")[-count:]) for path in paths for count in (1, 2)}
        ends = {end for end in ends if not end.split(".")[0].isdigit()}
        close = nearest(target, sorted(ends))
        hint = f"did you mean {close!r}? " if close else ""
        where, usual = ("UNet", (*ATTENTION, *CONVOLUTION)) if of == UNET else (of, JOINT_ATTENTION)
        raise UserError(
            f"LoRA target module {target!r} is not in the {where}; {hint}usual names are {', '.join(usual)}"
        )


def _config(settings: LoraTraining, targets: list[str], *, exclude: str | None = None) -> LoraConfig:
    alpha = settings.rank if settings.alpha is None else settings.alpha
    return LoraConfig(
        r=settings.rank,
        # peft's own type is int, but any number works and kohya's files hold floats
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,  # type: ignore[arg-type]
        target_modules=targets,
        exclude_modules=exclude,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )
