from __future__ import annotations

import math

import pytest
import torch

from unifl.metrics.spectrum import high_frequency_share


def _wave(rows, columns, *, side=32, channel=None):
    """Cycles per picture downwards and to the right, around a mean of 0.4."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = 0.3 * torch.cos(2 * math.pi * (rows * y + columns * x) / side + 0.7)
    picture = torch.full((3, side, side), 0.4)
    picture[slice(None) if channel is None else channel] += wave
    return picture


@pytest.mark.parametrize(
    ("rows", "columns", "cut", "share"),
    [
        (3, 0, 0.5, 0.0),
        (0, 9, 0.5, 1.0),
        (0, 9, 0.6, 0.0),
        (16, 0, 0.9, 1.0),  # Nyquist
        (6, 6, 0.5, 1.0),  # 6 sqrt 2 = 8.49 of 16
        (6, 5, 0.5, 0.0),  # 7.81 of 16
        (8, 0, 0.5, 0.0),  # on the cut, which is not above it
    ],
)
def test_a_wave_lies_wholly_above_or_below_the_cut(rows, columns, cut, share):
    found = high_frequency_share(_wave(rows, columns)[None], cut)
    assert float(found) == pytest.approx(share, abs=1e-9)


def test_energies_add_up_over_waves_and_channels():
    low, high = _wave(2, 0, channel=0) - 0.4, 0.5 * (_wave(0, 12, channel=1) - 0.4)
    found = high_frequency_share((0.4 + low + high)[None])
    assert float(found) == pytest.approx(0.25 / 1.25, abs=1e-6)


def test_noise_of_opposite_colours_counts_though_grey_shows_none_of_it():
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 - 0.5
    picture = 0.5 + 0.2 * torch.stack([board, -board, torch.zeros(16, 16)])
    assert picture.mean(0).std() < 1e-6
    assert float(high_frequency_share(picture[None])) == pytest.approx(1.0)


@pytest.mark.parametrize("cut", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_white_noise_has_the_share_of_the_area(cut, size):
    noise = torch.rand(8, 3, *size, generator=torch.Generator().manual_seed(0))
    found = high_frequency_share(noise, cut).mean()
    assert float(found) == pytest.approx(1 - math.pi * cut**2 / 4, abs=0.02)


def test_pictures_of_one_colour_have_none():
    colours = torch.tensor([[0.3, 0.1, 0.7], [0.0, 0.0, 0.0], [1.0, 1 / 3, 1.0]])
    assert high_frequency_share(colours[:, :, None, None].expand(3, 3, 24, 20)).tolist() == [0.0, 0.0, 0.0]


def test_moving_mirroring_and_scaling_change_nothing():
    picture = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    expected = high_frequency_share(picture)
    others = [picture.roll((3, -5), (2, 3)), picture.flip(3), picture.flip(1), 0.2 * picture + 0.5]
    for other in others:
        torch.testing.assert_close(high_frequency_share(other), expected, atol=1e-7, rtol=0)


def test_each_picture_is_measured_by_itself():
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([high_frequency_share(picture[None]) for picture in pictures])
    assert torch.equal(high_frequency_share(pictures), alone)
