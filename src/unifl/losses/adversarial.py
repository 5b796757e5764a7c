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


def r1_penalty(real_logit: Float[Tensor, " b"], real: Float[Tensor, "b *pixels"]) -> Float[Tensor, " b"]:
    """Squared gradient of the logit at real pictures, summed over pixels, with a graph to the discriminator.

    Args:
        real_logit: logits of real pictures, computed from `real`.
        real: the pictures, which require a gradient.

    Reference:
        R1 of Mescheder et al., arXiv 1801.04406, eq. 9, without the factor gamma / 2.
    """
    (slope,) = torch.autograd.grad(real_logit.sum(), real, create_graph=True)
    return at_least_float32(slope).square().flatten(1).sum(1)


def approximate_r1_penalty(
    real_logit: Float[Tensor, " b"], perturbed_logit: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Squared change of the logit under a little noise on the real picture.

    For noise of deviation sigma its mean is sigma^2 times `r1_penalty`, up to terms of order sigma^4.

    Args:
        real_logit: logits of real pictures.
        perturbed_logit: logits of the same pictures with noise added.

    Reference:
        The "approximated R1" of Lin et al., arXiv 2501.08316, without its factor lambda.
    """
    return (at_least_float32(real_logit) - at_least_float32(perturbed_logit)).square()
