from __future__ import annotations

import numpy as np
import pytest
import torch

from unifl.losses.style import gram, gram_distance


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_gram_against_explicit_sums():
    f = features(2, 3, 4, 5)
    expected = np.zeros((2, 3, 3))
    for b in range(2):
        for i in range(3):
            for j in range(3):
                expected[b, i, j] = (f[b, i].numpy() * f[b, j].numpy()).sum() / (3 * 4 * 5)
    np.testing.assert_allclose(gram(f).numpy(), expected, rtol=1e-12)


def test_gram_forgets_where_things_are():
    f = features(1, 3, 4, 4)
    shuffled = f.flatten(2)[:, :, torch.randperm(16)].reshape(f.shape)
    torch.testing.assert_close(gram(f), gram(shuffled))


def test_distance_is_the_mean_of_frobenius_norms():
    a, b = (
        [features(2, 3, 4, 4), features(2, 5, 2, 2)],
        [features(2, 3, 4, 4, seed=1), features(2, 5, 2, 2, seed=2)],
    )
    expected = sum(
        np.linalg.norm(gram(x).numpy() - gram(y).numpy(), axis=(1, 2)) for x, y in zip(a, b, strict=True)
    )
    np.testing.assert_allclose(gram_distance(a, b).numpy(), expected / 2, rtol=1e-12)


def test_distance_scales_with_the_square_of_the_features():
    a, b = [features(2, 3, 4, 4)], [features(2, 3, 4, 4, seed=1)]
    torch.testing.assert_close(gram_distance([2 * a[0]], [2 * b[0]]), 4 * gram_distance(a, b))


def test_equal_styles_have_distance_and_gradient_zero():
    f = features(2, 3, 4, 4).requires_grad_()
    loss = gram_distance([f], [f.detach().flip(2)])
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-15, rtol=0)
    exact = gram_distance([f], [f.detach()])
    assert exact.tolist() == [0, 0]
    assert torch.autograd.grad(exact.sum(), f)[0].abs().max() == 0


def test_gradient_against_finite_differences():
    f, target = features(1, 2, 3, 3).requires_grad_(), [features(1, 2, 3, 3, seed=1)]
    assert torch.autograd.gradcheck(lambda x: gram_distance([x], target), (f,))


def test_autocast_does_not_lower_the_precision():
    f = features(1, 4, 32, 32).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gram(f)
    assert torch.equal(inside, gram(f))
    assert gram(f.bfloat16()).dtype == torch.float32


def test_pictures_need_the_same_layers():
    with pytest.raises(AssertionError, match="same layers"):
        gram_distance([features(1, 2, 3, 3)], [])
