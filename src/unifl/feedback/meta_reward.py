"""MetaRM: keep a reward model able to tell samples of the current policy apart while it is fitted to older pairs.

    theta' = theta + eta grad J(theta)        J: spread of rewards over samples of one prompt (`unifl.losses.spread`)
    theta <- theta - alpha grad L(theta')     L: loss of the pairs

The gradient of L is taken where the step along J has led, and is applied at theta: first order, as in MAML's
approximation (Dou et al., MetaRM, arXiv 2405.00438; Wang et al., arXiv 2401.06080, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def meta_gradient(
    parameters: Sequence[nn.Parameter],
    spread: Callable[[], Float[Tensor, ""]],
    loss: Callable[[], Float[Tensor, ""]],
    eta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Put the gradient of the loss at the moved parameters into `.grad`; the parameters end where they were.

    Args:
        parameters: theta, those that are trained.
        spread: Gives J at the present parameters, with a graph.
        loss: Gives L at the present parameters, with a graph.
        eta: Length of the step along grad J, at least 0; 0 is an ordinary gradient.

    Returns:
        J at theta, L at theta'; detached.
    """
    found = spread()
    slopes = torch.autograd.grad(found, list(parameters), allow_unused=True)
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                parameter.add_(slope, alpha=eta)
    try:
        for parameter in parameters:
            parameter.grad = None
        value = loss()
        value.backward()
    finally:
        with torch.no_grad():
            for parameter, start in zip(parameters, before, strict=True):
                parameter.copy_(start)
    return found.detach(), value.detach()
