"""Noise-conditioned perception: predictions compared in the eyes of the frozen encoder (arXiv 2406.17636).

    x_theta,t' = step(x_t, eps_theta),  x_t' = step(x_t, eps)                             (eq. 12)
    l = mean |f(x_theta,t', c, t') - f(x_t', c, t')|^2 / n                                (eq. 13)

f is the down path of the U-Net that training started from, t' one timestep below t, and the mean runs over all
dimensions of the features. n makes l comparable over t: with `normalise: step` it is (d x_t' / d output)^2, and l is an
error of the output again, seen through the slope of f, so that a beta of the latent space stays of the same order. With
n = 1, as in the paper, l is 10^-5 to 10^-3 times as large on the schedule of Stable Diffusion.

What the paper leaves open: which tensor of the down path (here the last one), whether the noise of eq. 12 is shared
(it has to be, or a perfect prediction has a distance; here it is left out unless asked for), sums or means, and the
precision of f (here float32, see `unifl.models.features`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.precision import at_least_float32
from unifl.methods.counting import Evaluations
from unifl.models.conditioning import Conditioning, Prediction
from unifl.models.features import EncoderFeatures, Layer, Precision
from unifl.models.generator import Generator
from unifl.process import Flow, from_x0_eps, renoise_scale, reverse_scale, reverse_step, to_eps, to_x0
from unifl.randomness import Key

NO_PLACES = (
    "masks weigh places of latents, which features have not; set space to {kind: latent}, or leave out the "
    "masks of the pairs"
)


@dataclass(kw_only=True)
class NCPConfig:
    """Squared difference of features that the frozen encoder of the U-Net sees (arXiv 2406.17636)."""

    kind: Literal["ncp"] = "ncp"
    layer: Layer | int = "down_last"
    """Output of the last down block, of the mid block (the best in arXiv 2401.00110), or all that the down path hands
    on. A number is a block of a transformer, from 0."""
    states: Literal["reverse", "renoise"] = "reverse"
    """reverse: one timestep below t (eq. 12). renoise: predicted x0 and eps put together at another timestep, uniform
    (arXiv 2401.00110)."""
    normalise: Literal["none", "step", "energy"] = "step"
    """step: by the squared slope of the state, so that distances are alike over t and comparable with those of the
    latent space. energy: by the mean square of the true features. none: the paper's eq. 13 as it stands."""
    precision: Precision = "float32"
    """Of the encoder. The step of `reverse` drowns in half precision, which warns; that of `renoise` does not."""
    encoder: Literal["start", "random"] = "start"
    """What training started from, or random weights in the same shape (a control)."""
    seed: int = 0
    """Of random weights."""
    noise: bool = False
    """Add the noise of eq. 12, one draw for student, reference and truth."""

    def __post_init__(self) -> None:
        if self.noise and self.states == "renoise":
            raise UserError(
                "space.noise is for states: reverse; a state that is noised again has its noise in it"
            )


@dataclass(frozen=True)
class NCPTruth:
    """What `NCP` compares with.

    Attributes:
        features: Of the true state.
        s: Time t' of the states.
        cond: Prompts.
        divisor: n, one per sample.
        z: Noise of eq. 12, or None.
    """

    features: list[Tensor] = field(repr=False)
    s: Float[Tensor, " n"]
    cond: Conditioning = field(repr=False)
    divisor: Float[Tensor, " n"]
    z: Float[Tensor, "n c h w"] | None = field(repr=False)


class NCP:
    """Features of the frozen encoder, one step below x_t; see the top of this file and `methods.spaces.Space`.

    Args:
        config: Settings.
        generator: The model.

    Raises:
        UserError: A layer that the backbone does not have, noise for a flow.

    Warns:
        UserWarning: Half precision, with numbers.
    """

    has_places: bool = False

    def __init__(self, config: NCPConfig, generator: Generator) -> None:
        if config.noise and isinstance(generator.process, Flow):
            raise UserError(
                "space.noise is for diffusion models; the step of a flow adds no noise, set it to false"
            )
        self.config, self.generator = config, generator
        self.features = EncoderFeatures(
            generator,
            layer=config.layer,
            precision=config.precision,
            encoder=config.encoder,
            seed=config.seed,
        )
        self.roles: tuple[str, ...] = self.features.roles
        # t' = 1 / T is the lowest: index 0, which still holds noise
        self.earliest = (2 if config.states == "reverse" else 1) / generator.num_train_timesteps
        self._scale = reverse_scale if config.states == "reverse" else renoise_scale
        self._warn_of_rounding()

    @torch.no_grad()
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
    ) -> NCPTruth:
        """See `methods.spaces.Space`; one evaluation of the encoder.

        Raises:
            UserError: A mask, or a time below `earliest`.
        """
        if mask is not None:
            raise UserError(NO_PLACES)
        s, z = self._times(t, key), self._noise(x_t, key)
        features = self.features(self._state(self._perfect(x0, eps, x_t, t), s, z), s, cond)
        return NCPTruth(features, s, cond, self._divisor(t, s, features), z)

    def distance(self, prediction: Prediction, truth: NCPTruth) -> Float[Tensor, " n"]:
        """See `methods.spaces.Space`; one evaluation of the encoder, through whose input the gradient goes back.

        A batch of the size of the truth's is rounded as that was, so that a perfect prediction has distance 0.
        """
        found = self.features(self._state(prediction, truth.s, truth.z), truth.s, truth.cond)
        return _mean_square(found, truth.features) / truth.divisor

    def count(self, count: Evaluations, copies: int, *, reference: bool) -> None:
        """See `methods.spaces.Space`; the encoder is the down path of the U-Net, and the mid block where asked for."""
        count.add("unet encoder forward", copies * (1 + reference))
        count.add("unet encoder forward+backward", copies)

    # --- states ---------------------------------------------------------------------------------------------

    def _state(self, prediction: Prediction, s: Tensor, z: Tensor | None) -> Float[Tensor, "n c h w"]:
        process = self.generator.process
        if self.config.states == "renoise":
            return process.add_noise(prediction.x0, prediction.eps, s)
        return reverse_step(prediction.x_t, prediction.x0, prediction.t, s, process, z)

    def _perfect(self, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction of a network that is right, converted as by `Generator.denoise`: equal to the last bit."""
        kind = self.generator.kind
        alpha, sigma = self.generator.process.weights(t)
        raw = from_x0_eps(x0, eps, alpha, sigma, kind)
        x_0, noise = (convert(raw, x_t, alpha, sigma, kind) for convert in (to_x0, to_eps))
        return Prediction(x_t, t, raw, x_0, noise)

    def _times(self, t: Tensor, key: Key) -> Float[Tensor, " n"]:
        count = self.generator.num_train_timesteps
        if self.config.states == "reverse":
            if bool((t * count).min() < 1.5):
                raise UserError(
                    "noise-conditioned perception was asked at timestep 0, which has no earlier one; draw times of at "
                    f"least {self.earliest:g} (`earliest` of the space)"
                )
            return t - 1 / count
        drawn = key.integers("space/time", 0, count - 1).to(t.device)
        drawn = drawn.repeat(_turns(len(t), key))
        # one of the others: at t itself every prediction gives back x_t
        return ((drawn + (drawn >= (t * count).round() - 1) + 1) / count).to(t.dtype)

    def _noise(self, x_t: Tensor, key: Key) -> Float[Tensor, "n c h w"] | None:
        if not self.config.noise:
            return None
        z = key.normal("space/noise", x_t.shape[1:], device=x_t.device, dtype=x_t.dtype)
        return z.repeat(_turns(len(x_t), key), 1, 1, 1)

    def _divisor(self, t: Tensor, s: Tensor, features: list[Tensor]) -> Float[Tensor, " n"]:
        if self.config.normalise == "step":
            return self._scale(t, s, self.generator.process, self.generator.kind).square()
        if self.config.normalise == "energy":
            return _mean_square(features, None)
        return torch.ones_like(t)

    def _warn_of_rounding(self) -> None:
        if self.config.precision == "float32":
            return
        count = self.generator.num_train_timesteps
        t = torch.linspace(2 / count, 1, 64, dtype=torch.float64)
        s = t - 1 / count if self.config.states == "reverse" else t.roll(32)
        moved = 0.1 * self._scale(t, s, self.generator.process, self.generator.kind)
        spacing = torch.finfo(getattr(torch, self.config.precision)).eps
        if moved.median() > 2 * spacing:
            return
        warnings.warn(
            f"space.precision is {self.config.precision}: an error of 0.1 in the prediction moves the input of the "
            f"encoder by {moved.min():.1g} to {moved.max():.1g} (median {moved.median():.1g}), and values near 1 are "
            f"{spacing:.1g} apart in {self.config.precision}: distances will be mostly rounding noise; use float32, or "
            "states: renoise",
            stacklevel=4,
        )


def _turns(rows: int, key: Key) -> int:
    """How many times the draws of a key are used one after the other."""
    if rows % len(key):
        raise UserError(
            f"{rows} rows cannot share the draws of {len(key)} samples; pass a key of {rows}, or of a divisor"
        )
    return rows // len(key)


def _mean_square(maps: Sequence[Tensor], others: Sequence[Tensor] | None) -> Float[Tensor, " n"]:
    """Mean square of the maps, or of their differences, over all dimensions of all of them but the batch."""
    total, size = torch.zeros((), device=maps[0].device), 0
    for number, found in enumerate(maps):
        error = at_least_float32(found)
        if others is not None:
            error = error - at_least_float32(others[number])
        total = total + error.square().flatten(1).sum(1)
        size += error[0].numel()
    return total / size
