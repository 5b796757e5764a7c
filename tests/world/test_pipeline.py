"""The packaged pipeline's parts."""

from __future__ import annotations

import torch

from unifl.world import pipeline
from unifl.world.corruption import blur, damage, photometric, warp
from unifl.world.scenes import QUALITIES, sample_prompts


def test_every_word_is_one_token_and_no_caption_is_cut() -> None:
    tokens = pipeline.tokenizer()
    for caption in sample_prompts(300, seed=0, held_out=False):
        pieces = tokens.tokenize(caption)
        assert [p.removesuffix("</w>") for p in pieces] == caption.replace(",", " ,").split()
        assert len(pieces) + 2 <= pipeline.MAX_TOKENS


def test_damage_lowers_what_it_should() -> None:
    rng = torch.Generator().manual_seed(0)
    images, quality = torch.rand(200, 3, 32, 32, generator=rng), torch.ones(200, 4)
    damaged, labels, structure = damage(images, quality, rng, part=1.0)
    same = (damaged - images).abs().amax((1, 2, 3)) < 1e-6
    assert (labels[same] == 1).all() and (structure[same] == 1).all()
    assert 0.2 < (structure < 1).float().mean() < 0.8
    assert (labels[:, 1] == 1).all(), "no damage changes layout"
    assert labels[:, [0, 2, 3]].min() < 0.5 and labels.min() >= 0 and structure.min() >= 0


def test_blur_and_warp_have_the_stated_size() -> None:
    impulse = torch.zeros(1, 3, 33, 33)
    impulse[..., 16, 16] = 1
    spread = blur(impulse, torch.tensor([1.5]))[0, 0]
    x = torch.arange(33) - 16.0
    assert abs(float((spread.sum(0) * x**2).sum().sqrt()) - 1.5) < 0.03
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    moved = warp(ramp, torch.tensor([2.0]), torch.Generator().manual_seed(0))
    shift = ((moved - ramp)[..., 8:-8] * 63).square().mean().sqrt()
    assert 0.7 < float(shift) < 2.8, "root mean square displacement along one axis, px"


def test_a_picture_that_is_said_to_be_blurred_looks_it():
    """A blur too weak to be seen would teach judges to hold the softness of decoded pictures against them."""
    quality = torch.ones(600, 4)
    _, labels = photometric(torch.rand(600, 3, 16, 16), quality, torch.Generator().manual_seed(1), part=1.0)
    only_blur = labels[:, QUALITIES.index("lighting")] == 1  # grain and wrong exposure lower lighting too
    detail = labels[only_blur, QUALITIES.index("detail")]
    blurred = detail[detail < 1]
    assert len(blurred) > 40
    assert blurred.max() <= 0.7
