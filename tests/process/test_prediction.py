from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from unifl.errors import UserError
from unifl.process.prediction import from_x0_eps, parse_kind, require_defined, to_eps, to_x0
from unifl.process.process import DiscreteVP, Flow, zero_terminal_snr

KINDS = ("epsilon", "v_prediction", "sample", "flow")
value = st.floats(-10, 10, allow_nan=False)
weight = st.floats(1e-3, 1)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


def one(number: float) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.float64)


@given(kind=st.sampled_from(KINDS), x0=value, eps=value, alpha=weight, sigma=weight)
def test_every_kind_returns_what_it_was_made_of(kind, x0, eps, alpha, sigma):
    x0_, eps_ = column(x0), column(eps)
    x_t = alpha * x0_ + sigma * eps_
    raw = from_x0_eps(x0_, eps_, one(alpha), one(sigma), kind)
    torch.testing.assert_close(to_x0(raw, x_t, one(alpha), one(sigma), kind), x0_, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_eps(raw, x_t, one(alpha), one(sigma), kind), eps_, rtol=1e-9, atol=1e-9)


@given(kind=st.sampled_from(KINDS), raw=value, x_t=value, alpha=weight, sigma=weight)
def test_any_output_is_read_consistently(kind, raw, x_t, alpha, sigma):
    """x0 and eps read from an arbitrary output recombine to x_t and to the output itself."""
    args = one(alpha), one(sigma), kind
    x0, eps = to_x0(column(raw), column(x_t), *args), to_eps(column(raw), column(x_t), *args)
    assume(max(float(x0.abs()), float(eps.abs())) < 1e5)
    torch.testing.assert_close(alpha * x0 + sigma * eps, column(x_t), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(from_x0_eps(x0, eps, *args), column(raw), rtol=1e-8, atol=1e-8)


@given(start=st.sampled_from(KINDS), end=st.sampled_from(KINDS), t=st.floats(0.01, 0.99))
def test_converting_between_kinds_and_back(start, end, t):
    time = torch.full((5,), t, dtype=torch.float64)
    alpha, sigma = Flow().alpha(time), Flow().sigma(time)
    generator = torch.Generator().manual_seed(1)
    raw, x_t = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64, generator=generator)
    x0, eps = to_x0(raw, x_t, alpha, sigma, start), to_eps(raw, x_t, alpha, sigma, start)
    other = from_x0_eps(x0, eps, alpha, sigma, end)
    x0, eps = to_x0(other, x_t, alpha, sigma, end), to_eps(other, x_t, alpha, sigma, end)
    torch.testing.assert_close(from_x0_eps(x0, eps, alpha, sigma, start), raw, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "flow"])
def test_pure_noise_is_read_without_division_by_zero(kind):
    x0, eps = column(0.3, -2.0), column(1.0, 0.5)
    alpha, sigma = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    raw = from_x0_eps(x0, eps, alpha, sigma, kind)
    torch.testing.assert_close(to_x0(raw, eps, alpha, sigma, kind), x0)
    torch.testing.assert_close(to_eps(raw, eps, alpha, sigma, kind), eps)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_clean_input_is_read_without_division_by_zero(kind):
    x0, eps = column(0.3, -2.0), column(1.0, 0.5)
    alpha, sigma = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    raw = from_x0_eps(x0, eps, alpha, sigma, kind)
    torch.testing.assert_close(to_x0(raw, x0, alpha, sigma, kind), x0)
    torch.testing.assert_close(to_eps(raw, x0, alpha, sigma, kind), eps)


def test_v_and_flow_are_the_velocities_of_their_paths():
    """On the circle x(u) = cos u x0 + sin u eps, v is dx/du; on the straight line, flow is dx/dt."""
    x0, eps, h = column(0.7), column(-1.1), 1e-6
    u = torch.tensor([0.9], dtype=torch.float64)

    def circle(a: torch.Tensor) -> torch.Tensor:
        return a.cos() * x0 + a.sin() * eps

    slope = (circle(u + h) - circle(u - h)) / (2 * h)
    torch.testing.assert_close(
        from_x0_eps(x0, eps, u.cos(), u.sin(), "v_prediction"), slope, atol=1e-9, rtol=0
    )
    line = (Flow().add_noise(x0, eps, u + h - 0.1) - Flow().add_noise(x0, eps, u - h - 0.1)) / (2 * h)
    torch.testing.assert_close(from_x0_eps(x0, eps, 1 - u, u, "flow"), line, atol=1e-9, rtol=0)


def test_half_precision_outputs_become_float32():
    raw, x_t, weight = torch.randn(2, 3).bfloat16(), torch.randn(2, 3), torch.full((2,), 0.6)
    for kind in ("epsilon", "v_prediction", "flow"):
        assert to_x0(raw, x_t, weight, weight, kind).dtype == torch.float32


def test_misspelt_kind_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        parse_kind("epsilom")
    assert parse_kind("flow") == "flow"


def test_epsilon_is_refused_where_the_noise_leaves_no_signal():
    table = torch.linspace(0.99, 0.1, 10)
    with pytest.raises(UserError, match="v_prediction"):
        require_defined("epsilon", DiscreteVP(zero_terminal_snr(table)))
    require_defined("v_prediction", DiscreteVP(zero_terminal_snr(table)))
    require_defined("epsilon", DiscreteVP(table))
    require_defined("flow", Flow())
