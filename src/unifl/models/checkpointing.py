"""Gradient checkpointing that recomputes with the weights that the forward pass used.

Checkpointing runs a block a second time during backward. With adapters, "the block" then means whatever adapter is
on at that moment: a loss that saw the student through a frozen second role gets the gradient of another function,
without any message. The function below notes the role at forward and enters it again for the recomputation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from unifl.models.roles import Roles

CheckpointFunction = Callable[..., Any]


def role_aware_checkpoint(roles: Roles) -> CheckpointFunction:
    """A `gradient_checkpointing_func` for diffusers and transformers, bound to the roles of one generator.

    Returns:
        A function (block, *inputs) -> outputs that stores the inputs only, and recomputes under the role that was
        current when it was called.
    """

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        role = roles.current

        def forward(*again: Any) -> Any:
            with roles.use(role):
                return block(*again)

        return checkpoint(forward, *inputs, use_reentrant=False)

    return run


def enable_checkpointing(module: nn.Module, function: CheckpointFunction) -> None:
    """Turns gradient checkpointing on in a diffusers model or a transformers text encoder."""
    if isinstance(module, ModelMixin):
        module.enable_gradient_checkpointing(gradient_checkpointing_func=function)
        return
    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = function
            # transformers checkpoints layers in training mode only. Only the layer itself is put there: its
            # children, among them dropout, stay in evaluation mode.
            layer.training = True


@contextmanager
def checkpointed_decoder(decoder: Any) -> Iterator[None]:
    """Within the block, a VAE decoder stores block inputs only and recomputes the rest during backward.

    The decoder has one weight set, so no role is involved.
    """

    def function(block: Callable[..., Any], *inputs: Any) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False)

    before = decoder.gradient_checkpointing
    decoder.gradient_checkpointing, decoder._gradient_checkpointing_func = True, function
    try:
        yield
    finally:
        decoder.gradient_checkpointing = before
