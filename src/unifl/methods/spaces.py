"""Where the prediction of a denoiser is compared with the truth: in its own output, or in the eyes of a frozen encoder.

    latent   l = mean |output - target|^2
    ncp      l = mean |f(x_theta,t', c, t') - f(x_t', c, t')|^2 / n         (`unifl.methods.ncp`)

Means run over all dimensions but the batch: the beta of a loss on such distances goes with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.losses.denoising import denoising_mse
from unifl.losses.precision import at_least_float32
from unifl.methods.counting import Evaluations
from unifl.methods.ncp import NCP as NCP
from unifl.methods.ncp import NCPConfig as NCPConfig
from unifl.models.conditioning import Conditioning, Prediction
from unifl.models.generator import Generator
from unifl.process import from_x0_eps
from unifl.randomness import Key


@dataclass(kw_only=True)
class LatentSpaceConfig:
    """Squared error of the network's output against its target, as in pre-training."""

    kind: Literal["latent"] = "latent"


SpaceConfig = LatentSpaceConfig | NCPConfig


class Space(Protocol):
    """How far predictions at x_t are from the truth there.

    Attributes:
        roles: Roles of the generator that it needs.
        lowest_index: Smallest timestep index that it can be asked at.
    """

    roles: tuple[str, ...]
    lowest_index: int

    def truth(
        self,
        x0: Float[Tensor, "b c h w"],
        eps: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        cond: Conditioning,
        key: Key,
    ) -> Any:
        """What `distance` compares with, once per step, without gradient.

        Args:
            x0: Clean latents.
            eps: The noise that was added to them.
            x_t: The noisy latents.
            t: Their times, index `lowest_index` or above.
            cond: Prompts as the role `reference` reads them.
            key: Address of draws. With fewer samples than rows, rows share them in turn: winners and losers stacked,
                (2 b, ...), under the b indices of their pairs get the same draws.
        """
        ...

    def distance(
        self,
        prediction: Prediction,
        truth: Any,
        *,
        mask: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, " b"]:
        """Squared distance, mean over all dimensions but the batch; float32, with gradient where torch records one.

        Args:
            prediction: At the x_t and t of the truth.
            truth: What `truth` gave.
            mask: Weights of places, multiplied before the mean over all places; for the latent space only.
        """
        ...

    def distances_without_grad(
        self,
        predictions: Sequence[Prediction],
        x0: Float[Tensor, "b c h w"],
        eps: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        cond: Conditioning,
        key: Key,
    ) -> tuple[Any, list[Float[Tensor, " b"]]]:
        """The truth, and the distance of each prediction to it, in one batch; for a reference.

        Other than by `truth` and `distance`, a network sees rows in a batch of another size, and rounds otherwise.
        """
        ...

    def count(self, count: Evaluations, *, graded: bool, per_picture: float = 1) -> None:
        """Book what one `truth` or `distance` costs; `graded` is a distance with gradient."""
        ...


def make_space(config: SpaceConfig, generator: Generator) -> Space:
    """The space of a config.

    Raises:
        UserError: Settings that this model cannot follow.
    """
    return LatentSpace(generator) if isinstance(config, LatentSpaceConfig) else NCP(config, generator)


@dataclass(frozen=True)
class LatentTruth:
    """What `LatentSpace` compares with."""

    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    alpha: Float[Tensor, " b"]
    sigma: Float[Tensor, " b"]


class LatentSpace:
    """The network's own output; see `Space`."""

    roles: tuple[str, ...] = ()
    lowest_index: int = 0

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def truth(
        self,
        x0: Float[Tensor, "b c h w"],
        eps: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        cond: Conditioning,
        key: Key,
    ) -> LatentTruth:
        """See `Space`; costs nothing."""
        return LatentTruth(x0, eps, *self.generator.process.weights(t.to(x0.dtype)))

    def distance(
        self,
        prediction: Prediction,
        truth: LatentTruth,
        *,
        mask: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, " b"]:
        """See `Space`."""
        kind = self.generator.kind
        if mask is None:
            return denoising_mse(prediction.raw, truth.x0, truth.eps, truth.alpha, truth.sigma, kind)
        error = at_least_float32(prediction.raw) - from_x0_eps(
            truth.x0, truth.eps, truth.alpha, truth.sigma, kind
        )
        return (mask * error.square()).flatten(1).mean(1)

    def distances_without_grad(
        self,
        predictions: Sequence[Prediction],
        x0: Float[Tensor, "b c h w"],
        eps: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        cond: Conditioning,
        key: Key,
    ) -> tuple[LatentTruth, list[Float[Tensor, " b"]]]:
        """See `Space`."""
        truth = self.truth(x0, eps, x_t, t, cond, key)
        with torch.no_grad():
            return truth, [self.distance(prediction, truth) for prediction in predictions]

    def count(self, count: Evaluations, *, graded: bool, per_picture: float = 1) -> None:
        """Nothing: no network is asked."""
