from __future__ import annotations

import pytest
import torch

from unifl.losses.edges import edge_distance, edge_magnitude, edge_map


def _step(column: int, height: float = 1.0) -> torch.Tensor:
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., column:] = height
    return picture


def test_slopes_have_their_value():
    ramp = (torch.arange(16.0) * 0.05).expand(1, 3, 16, 16)
    for picture in (ramp, ramp.transpose(2, 3), 0.75 - ramp):
        inner = edge_magnitude(picture, sigma=0.0)[0, 1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.full_like(inner, 0.05), rtol=0, atol=2e-4)
    diagonal = (ramp + ramp.transpose(2, 3)) / 2
    inner = edge_magnitude(diagonal, sigma=0.0)[0, 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.05 / 2**0.5), rtol=0, atol=2e-4)
    columns = edge_magnitude(_step(8), sigma=0.0)[0, 8]
    torch.testing.assert_close(columns[6:10], torch.tensor([0.0, 0.5, 0.5, 0.0]), rtol=0, atol=2e-4)


def test_the_blur_is_gaussian():
    # the derivative of a blurred step is the Gaussian itself, here averaged over two pixels
    sigma = 2.0
    picture = torch.zeros(1, 3, 48, 48)
    picture[..., 24:] = 1
    position = torch.arange(48.0)
    density = torch.exp(-((position - 23.5) ** 2) / (2 * sigma**2)) / (sigma * (2 * torch.pi) ** 0.5)
    found = edge_magnitude(picture, sigma=sigma)[0, 24]
    torch.testing.assert_close(found, density, rtol=0, atol=0.01)


def test_the_threshold_is_soft_and_forgets_contrast():
    ramp = (torch.arange(16.0) * 0.1).expand(1, 3, 16, 16)
    inner = edge_map(ramp, sigma=0.0, threshold=0.1)[0, 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=0.01)
    strong, weak = edge_map(_step(8), threshold=0.05), edge_map(_step(8, 0.5), threshold=0.05)
    assert float((strong - weak).abs()[0, :, 7:9].max()) < 0.05
    assert float(edge_map(torch.full((1, 3, 8, 8), 0.3)).max()) < 0.05


def test_the_distance_grows_as_edges_move_and_is_zero_where_they_do_not():
    assert float(edge_distance(_step(8), _step(8))) == 0
    # once the edges no longer touch, further away is no worse
    near, far = (float(edge_distance(_step(column), _step(8))) for column in (9, 12))
    assert 0.02 < near < far
    # brightness without a slope is no edge
    assert float(edge_distance(_step(8) * 0.5 + 0.5, _step(8, 0.5))) < 1e-6


@pytest.mark.parametrize("threshold", [None, 0.1])
def test_gradients_are_finite_everywhere(threshold):
    for picture in (torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8)):
        picture.requires_grad_()
        edge_distance(picture, torch.rand(1, 3, 8, 8), threshold=threshold).sum().backward()
        assert bool(picture.grad.isfinite().all())
    picture = torch.rand(1, 3, 6, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: edge_map(x, threshold=threshold), (picture,))
