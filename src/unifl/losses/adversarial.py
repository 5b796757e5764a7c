"""Adversarial losses on the raw logits of a discriminator, higher meaning more real.

The discriminator of UniFL is a reward model that trains (arXiv 2404.05595, section 4.3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32


def generator_linear(fake_logit: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The negative logit, as printed in UniFL eq. 6.

    Against a cross-entropy discriminator it has no lower bound; see `generator_bounded`.
    """
    return -at_least_float32(fake_logit)


def generator_bounded(
    fake_logit: Float[Tensor, " b"], level: float | Float[Tensor, ""]
) -> Float[Tensor, " b"]:
    """The linear loss, stopped where a sample scores like a real picture: ReLU(level - logit).

    Args:
        fake_logit: logits of generated pictures.
        level: mean logit of real pictures; treated as a constant.
    """
    if isinstance(level, Tensor):
        level = level.detach()
    return torch.relu(level - at_least_float32(fake_logit))


def generator_logsigmoid(fake_logit: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The non-saturating loss -log sigmoid(logit) (Goodfellow et al., arXiv 1406.2661)."""
    return F.softplus(-at_least_float32(fake_logit))


def discriminator_bce(
    real_logit: Float[Tensor, " b"], fake_logit: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """-log sigmoid(real) - log(1 - sigmoid(fake)), UniFL eq. 6; 2 log 2 where the logits are 0.

    Args:
        real_logit: logits of real pictures.
        fake_logit: logits of generated pictures, detached from the generator by the caller.
    """
    return F.softplus(-at_least_float32(real_logit)) + F.softplus(at_least_float32(fake_logit))
