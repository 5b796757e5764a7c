"""Losses and weights of samples that were judged one by one: liked or not, or scored."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.precision import at_least_float32

Utility = Literal["kahneman_tversky", "loss_averse", "risk_seeking"]
"""What a gain is worth."""

_LARGEST_EXPONENT = 80.0  # e^80 = 6e34 leaves a factor of 6e3 below the largest float32


def kto_baseline(rho: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """The point from which gains and losses count: the mean of rho over the batch, at least 0, without gradient.

    An estimate of the divergence from the reference, which is not negative, in units of rho.

    Args:
        rho: of liked and disliked samples together; of all processes, where there are several.

    Reference:
        The default of the code that accompanies Diffusion-KTO, arXiv 2404.04465.
    """
    return at_least_float32(rho).detach().mean().clamp(min=0)


def kto(
    rho: Float[Tensor, " b"],
    liked: Bool[Tensor, " b"],
    *,
    beta: int | float,
    baseline: float | Float[Tensor, ""],
    weight_liked: float = 1.0,
    weight_disliked: float = 1.0,
    utility: Utility = "kahneman_tversky",
) -> Float[Tensor, " b"]:
    """One minus the utility of what the student gained on a sample: w (1 - U(z)), z = +-beta (rho - baseline).

    The sign is + for liked samples and - for the others, and

        kahneman_tversky   U(z) = sigmoid(z)          saturates on both sides; the loss is in [0, w]
        loss_averse        U(z) = log sigmoid(z)      losses count without bound: gradients like those of `logistic`
        risk_seeking       U(z) = -log sigmoid(-z)    gains count without bound: the loss has no lower bound

    Args:
        rho: s_student - s_reference.
        liked: True for samples that people liked.
        beta: multiplies rho itself, without the 1/2 of `logits`. Published code: 1000.
        baseline: see `kto_baseline`; a constant.
        weight_liked: w of liked samples.
        weight_disliked: w of the others.
        utility: U.

    Returns:
        One loss per sample; w / 2, w (1 + log 2) and w (1 - log 2) at z = 0.

    Reference:
        Li et al., Diffusion-KTO, arXiv 2404.04465, and the code that accompanies it (`sigmoid`, `loss_averse`,
        `risk_seeking_3`); Ethayarajh et al., KTO, arXiv 2402.01306.
    """
    gain = beta * (at_least_float32(rho) - baseline)
    z = torch.where(liked, gain, -gain)
    weight = torch.full_like(gain, weight_disliked).masked_fill(liked, weight_liked)
    if utility == "kahneman_tversky":
        return weight * torch.sigmoid(-z)  # 1 - sigmoid(z), also where that rounds to 0
    return weight * (1 - (F.logsigmoid(z) if utility == "loss_averse" else -F.logsigmoid(-z)))


def reward_weights(
    scores: Float[Tensor, " b"], *, temperature: int | float, normalise: bool
) -> Float[Tensor, " b"]:
    """Weights of reward-weighted regression, exp(R / T): the loss of a sample is its weight times l.

    Args:
        scores: R, higher is better; constants.
        temperature: T, above 0, in units of R. Small: only the best samples count; large: all alike.
        normalise: divides by the mean of the weights over the batch, so that they are b softmax(R / T), have mean 1,
            and depend only on differences of scores; equal scores are plain fine-tuning. Without it exponents above
            80 are cut off there, so that no weight is infinite.

    Raises:
        UserError: if the temperature is 0 or less.

    Reference:
        Flow-RWR, arXiv 2501.13918 (not normalised, T = 1); the softmax over a group as in the comparison of
        Flow-GRPO, arXiv 2505.05470, appendix C.1.
    """
    if temperature <= 0:
        raise UserError(
            f"The temperature of the reward weights is {temperature}; choose one above 0, "
            "of the order of the differences between scores."
        )
    exponents = at_least_float32(scores).detach() / temperature
    if normalise:
        return len(exponents) * torch.softmax(exponents, 0)
    return exponents.clamp(max=_LARGEST_EXPONENT).exp()
