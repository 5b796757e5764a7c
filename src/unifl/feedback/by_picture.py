"""A loss that is computed again during backward, one picture at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def by_picture(
    loss: Callable[..., Tensor], images: Float[Tensor, "b 3 h w"], *targets: Any, checkpointing: bool
) -> Float[Tensor, " b"]:
    """loss(images, *targets), and what it stores for backward.

    With checkpointing, and where a gradient is needed, pictures and targets alone are kept, and backward needs at once
    what one picture takes. Equal in value, because a frozen network in evaluation mode has no randomness and no
    pictures that see each other.

    Args:
        loss: Gives one value per picture.
        images: Pictures that may need a gradient.
        targets: What they are compared with, a row per picture: tensors (b, ...) or lists.
        checkpointing: Whether to.
    """
    if not (checkpointing and torch.is_grad_enabled() and images.requires_grad):
        return loss(images, *targets)
    rows = (slice(index, index + 1) for index in range(len(images)))
    losses = [
        checkpoint(
            loss,
            images[row],
            *(target[row] for target in targets),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for row in rows
    ]
    return torch.cat(losses)
