from __future__ import annotations

import torch

from unifl.losses.depth import normalised_depth, scale_shift_invariant


def _depth(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(seed))


def test_scale_and_shift_of_either_map_do_not_count_and_sign_does():
    d, other = _depth(), _depth(1)
    torch.testing.assert_close(normalised_depth(3 * d + 2), normalised_depth(d), rtol=1e-4, atol=1e-5)
    assert float(scale_shift_invariant(3 * d + 2, d).max()) < 1e-4
    torch.testing.assert_close(
        scale_shift_invariant(5 * d - 1, 0.1 * other + 7),
        scale_shift_invariant(d, other),
        rtol=1e-3,
        atol=1e-4,
    )
    assert float(scale_shift_invariant(-d, d).min()) > 1


def test_values_by_hand():
    # median 1, mean |d - 1| = (1 + 0 + 2) / 3 = 1: normalised -1, 0, 2; the target's: median 2, spread 2/3
    made, wanted = torch.tensor([[[0.0, 1.0, 3.0]]]), torch.tensor([[[1.0, 2.0, 3.0]]])
    torch.testing.assert_close(normalised_depth(made), torch.tensor([[[-1.0, 0.0, 2.0]]]))
    torch.testing.assert_close(normalised_depth(wanted), torch.tensor([[[-1.5, 0.0, 1.5]]]))
    plain = scale_shift_invariant(made, wanted, gradient_weight=0.0)
    torch.testing.assert_close(plain, torch.tensor([(0.5 + 0 + 0.5) / 3 / 2]))

    # one scale: the difference of normalised maps and its steps, computed beside the function
    made, wanted = _depth(2), _depth(3)
    difference = normalised_depth(made) - normalised_depth(wanted)
    steps = difference.diff(dim=1).abs().mean((1, 2)) + difference.diff(dim=2).abs().mean((1, 2))
    torch.testing.assert_close(
        scale_shift_invariant(made, wanted, gradient_weight=0.5, scales=1),
        difference.abs().mean((1, 2)) / 2 + 0.5 * steps,
    )
    coarse = difference[:, ::2, ::2]
    steps = steps + coarse.diff(dim=1).abs().mean((1, 2)) + coarse.diff(dim=2).abs().mean((1, 2))
    torch.testing.assert_close(
        scale_shift_invariant(made, wanted, gradient_weight=0.5, scales=2),
        difference.abs().mean((1, 2)) / 2 + 0.5 * steps,
    )


def test_constant_maps_are_finite_and_gradients_are_those_of_float64():
    flat = torch.ones(1, 8, 8, requires_grad=True)
    loss = scale_shift_invariant(flat, _depth()[:1, :8, :8])
    assert bool(loss.isfinite().all())
    loss.sum().backward()
    assert bool(flat.grad.isfinite().all())
    d = _depth().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scale_shift_invariant(x, _depth(1).double()), (d,))
