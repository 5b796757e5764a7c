"""Where the prediction of a denoiser is compared with the truth: in its own output, or in the eyes of a frozen encoder.

    latent   l = mean |output - target|^2
    ncp      l = mean |f(x_theta,t', c, t') - f(x_t', c, t')|^2 / n         (`unifl.methods.ncp`)

Means run over all dimensions but the batch: the beta of a loss on such distances goes with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from unifl.losses.denoising import denoising_mse, masked_mse
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


@runtime_checkable
class Space(Protocol):
    """How far predictions at x_t are from the truth there.

    Attributes:
        roles: Roles of the generator that it needs.
        earliest: Smallest time that it can be asked at.
        has_places: Whether a mask can weigh its places.
    """

    roles: tuple[str, ...]
    earliest: float
    has_places: bool

    def truth(
        self,
        x0: Float[Tensor, "n c h w"],
        eps: Float[Tensor, "n c h w"],
        x_t: Float[Tensor, "n c h w"],
        t: Float[Tensor, " n"],
        cond: Conditioning,
        key: Key,
        *,
        mask: Float[Tensor, "n 1 h w"] | None = None,
    ) -> Any:
        """What `distance` compares with; once per step, without gradient.

        Args:
            x0: Clean latents.
            eps: The noise in x_t.
            x_t: Noisy latents.
            t: Their times, `earliest` or later.
            cond: Prompts as the role `reference` reads them.
            key: Address of draws. Where it has fewer samples than there are rows, rows take its draws in turn: winners
                and then losers under the indices of their pairs get the same.
            mask: Weight of each place, in [0, 1]; the latent space alone has places.
        """
        ...

    def distance(self, prediction: Prediction, truth: Any) -> Float[Tensor, " n"]:
        """Squared distance, mean over all dimensions but the batch, at least float32.

        Args:
            prediction: At the x_t and t of the truth; a gradient goes back into it.
            truth: What `truth` gave.
        """
        ...

    def count(self, count: Evaluations, copies: int, *, reference: bool) -> None:
        """Book the truth, the student's distance with a graph and, where there is one, the reference's without.

        Args:
            count: The sum.
            copies: Samples per row.
            reference: Whether there is one.
        """
        ...


def make_space(config: SpaceConfig, generator: Generator) -> Space:
    """The space of a config.

    Raises:
        UserError: Settings that this model cannot follow, see `NCP`.
    """
    return LatentSpace(generator) if isinstance(config, LatentSpaceConfig) else NCP(config, generator)


@dataclass(frozen=True)
class LatentTruth:
    """What `LatentSpace` compares with."""

    x0: Float[Tensor, "n c h w"]
    eps: Float[Tensor, "n c h w"]
    t: Float[Tensor, " n"]
    mask: Float[Tensor, "n 1 h w"] | None


class LatentSpace:
    """The network's own output; see `Space`. A masked distance is the mean inside the mask (`masked_mse`)."""

    roles: tuple[str, ...] = ()
    earliest: float = 0.0
    has_places: bool = True

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def truth(
        self,
        x0: Float[Tensor, "n c h w"],
        eps: Float[Tensor, "n c h w"],
        x_t: Float[Tensor, "n c h w"],
        t: Float[Tensor, " n"],
        cond: Conditioning,
        key: Key,
        *,
        mask: Float[Tensor, "n 1 h w"] | None = None,
    ) -> LatentTruth:
        """See `Space`; costs nothing."""
        return LatentTruth(x0, eps, t, mask)

    def distance(self, prediction: Prediction, truth: LatentTruth) -> Float[Tensor, " n"]:
        """See `Space`."""
        alpha, sigma = self.generator.process.weights(truth.t)
        kind = self.generator.kind
        if truth.mask is None:
            return denoising_mse(prediction.raw, truth.x0, truth.eps, alpha, sigma, kind)
        return masked_mse(prediction.raw - from_x0_eps(truth.x0, truth.eps, alpha, sigma, kind), truth.mask)

    def count(self, count: Evaluations, copies: int, *, reference: bool) -> None:
        """Nothing: no network is asked."""
