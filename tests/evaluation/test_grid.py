from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unifl.errors import UserError
from unifl.evaluation.grid import picture_grid, to_pil


def test_rounds_to_8_bit_and_cuts_what_is_outside():
    image = torch.tensor([-1.0, 0.0, 0.5, 2.0]).view(1, 1, 4).expand(3, 1, 4)
    assert np.asarray(to_pil(image))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_pixels_are_repeated_exactly():
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 2, 2).clone()
    red[:, 0, 0] = 0
    page = np.asarray(picture_grid([[red]], scale=3))
    black = (page == 0).all(axis=-1)
    pure_red = (page == [255, 0, 0]).all(axis=-1)
    assert (black.sum(), pure_red.sum()) == (9, 27)


def test_titles_captions_and_gaps_make_room():
    cell = torch.zeros(3, 8, 8)
    plain = picture_grid([[cell, cell], [cell, None]], scale=2)
    labelled = picture_grid([[cell, cell], [cell, None]], scale=2, columns=["a", "b"], rows=["one", "two"])
    assert labelled.width == plain.width + 220
    assert labelled.height > plain.height
    assert (np.asarray(labelled)[:, :200] < 200).any()  # the captions are there


def test_takes_pil_pictures():
    assert picture_grid([[Image.new("L", (4, 4))]], scale=1).mode == "RGB"


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([[torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)]], {}, "one size"),
        ([[None]], {}, "one size, got none"),
        ([[torch.zeros(3, 4, 4)]], {"columns": ["a", "b"]}, "2 column titles for 1"),
        ([[torch.zeros(3, 4, 4)]], {"scale": 0}, "scale"),
    ],
)
def test_says_what_does_not_fit(images, options, message):
    with pytest.raises(UserError, match=message):
        picture_grid(images, **options)
