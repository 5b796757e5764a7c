from __future__ import annotations

import colorsys

import pytest
import torch

from unifl.metrics.saturation import mean_saturation


def test_it_is_the_s_of_hsv():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for image, found in zip(images, mean_saturation(images), strict=True):
        pixels = image.flatten(1).T.tolist()
        expected = sum(colorsys.rgb_to_hsv(*pixel)[1] for pixel in pixels) / len(pixels)
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_grey_and_black_have_none_and_pure_colours_all():
    grey, black, red = torch.full((3, 2, 2), 0.4), torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    red[0] = 0.3
    assert mean_saturation(torch.stack([grey, black, red])).tolist() == pytest.approx([0.0, 0.0, 1.0])
