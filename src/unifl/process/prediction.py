"""What a network predicts, and how that turns into x0 and eps.

Each kind is a linear combination of x0 and eps, and so is x_t; two equations give the two unknowns. Nothing
here assumes alpha^2 + sigma^2 = 1, so every kind works with every process.
"""

from __future__ import annotations

from typing import Literal, assert_never, cast, get_args

from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError, nearest
from unifl.process.process import DiscreteVP, Process, per_sample

PredictionKind = Literal["epsilon", "v_prediction", "sample", "flow"]


def from_x0_eps(
    x0: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    kind: PredictionKind,
) -> Float[Tensor, "b *d"]:
    """The network output of the given kind that means (x0, eps); also the regression target in training.

    Args:
        x0: clean sample (b, ...).
        eps: noise (b, ...).
        alpha: weight of the data, one per sample.
        sigma: weight of the noise, one per sample.
        kind: "epsilon": eps; "sample": x0; "v_prediction": alpha eps - sigma x0 (Salimans and Ho,
            arXiv 2202.00512); "flow": eps - x0, which is dx_t/dt of the straight path.
    """
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        return per_sample(alpha, x0) * eps - per_sample(sigma, x0) * x0
    if kind == "flow":
        return eps - x0
    assert_never(kind)


def to_x0(
    raw: Float[Tensor, "b *d"],
    x_t: Float[Tensor, "b *d"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    kind: PredictionKind,
) -> Float[Tensor, "b *d"]:
    """The clean sample that a raw network output predicts at x_t.

    Args:
        raw: network output of the given kind (b, ...).
        x_t: its noisy input (b, ...).
        alpha: weight of the data at the time of x_t, one per sample; "epsilon" needs alpha > 0.
        sigma: weight of the noise, one per sample.
        kind: see `from_x0_eps`.
    """
    a, s = per_sample(alpha, x_t), per_sample(sigma, x_t)
    if kind == "epsilon":
        return (x_t - s * raw) / a
    if kind == "sample":
        return raw
    if kind == "v_prediction":
        return (a * x_t - s * raw) / (a**2 + s**2)
    if kind == "flow":
        return (x_t - s * raw) / (a + s)
    assert_never(kind)


def to_eps(
    raw: Float[Tensor, "b *d"],
    x_t: Float[Tensor, "b *d"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    kind: PredictionKind,
) -> Float[Tensor, "b *d"]:
    """The noise that a raw network output predicts at x_t.

    The arguments are those of `to_x0`; "sample" needs sigma > 0.
    """
    a, s = per_sample(alpha, x_t), per_sample(sigma, x_t)
    if kind == "epsilon":
        return raw
    if kind == "sample":
        return (x_t - a * raw) / s
    if kind == "v_prediction":
        return (s * x_t + a * raw) / (a**2 + s**2)
    if kind == "flow":
        return (x_t + a * raw) / (a + s)
    assert_never(kind)


def parse_kind(name: str) -> PredictionKind:
    """Checks the name of a prediction kind, as read from a scheduler config or typed by a user."""
    kinds = get_args(PredictionKind)
    if name not in kinds:
        close = nearest(name, kinds)
        hint = f"did you mean {close!r}? " if close else ""
        raise UserError(f"unknown prediction type {name!r}; {hint}choose one of {', '.join(kinds)}")
    return cast(PredictionKind, name)


def require_defined(kind: PredictionKind, process: Process) -> None:
    """Refuses a model whose prediction says nothing about x0 at t = 1.

    Raises:
        UserError: noise prediction together with a schedule of zero terminal SNR, where x_1 is pure noise and
            dividing by alpha(1) = 0 would give infinities in the first step.
    """
    if kind == "epsilon" and isinstance(process, DiscreteVP) and process.ends_in_noise:
        raise UserError(
            "a schedule with zero terminal SNR cannot be used with a model that predicts epsilon; "
            "set rescale_betas_zero_snr to false, or use a model with v_prediction"
        )
