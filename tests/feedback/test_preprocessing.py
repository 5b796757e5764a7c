from __future__ import annotations

import pytest
import torch
import transformers as hf
from PIL import Image

from unifl.errors import UserError
from unifl.feedback.preprocessing import Preprocessing, read_preprocessing

NORMAL = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _picture(height, width):
    """Smooth, so that rounding to bytes is the only difference that remains; and with one sharp edge."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = torch.stack([x, y, (x * 6).sin() * (y * 5).cos() / 2 + 0.5])
    picture[:, height // 3 : height // 2] *= 0.3
    return (picture * 255).round() / 255


PROCESSORS = {
    "segformer": (hf.SegformerImageProcessorPil, {"size": {"height": 48, "width": 48}}, (80, 80)),
    "dpt": (
        hf.DPTImageProcessorPil,
        {"size": {"height": 56, "width": 56}, "keep_aspect_ratio": True, "ensure_multiple_of": 14},
        (90, 60),
    ),
    "glpn": (hf.GLPNImageProcessorPil, {"do_normalize": False}, (77, 100)),
    "mask2former": (
        hf.Mask2FormerImageProcessorPil,
        {"size": {"shortest_edge": 64, "longest_edge": 160}, "size_divisor": 32},
        (50, 75),
    ),
    "mobilevit": (
        hf.MobileViTImageProcessorPil,
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": False},
        (60, 60),
    ),
    "vit": (hf.ViTImageProcessorPil, {"size": {"height": 64, "width": 64}, "resample": 3}, (40, 50)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_it_sees_what_the_pil_processor_sees(name):
    """Up to the byte to which PIL rounds."""
    cls, settings, size = PROCESSORS[name]
    processor = cls(**({} if name == "glpn" else NORMAL), **settings)
    picture = _picture(*size)
    image = Image.fromarray((picture.permute(1, 2, 0) * 255).to(torch.uint8).numpy())
    expected = processor(image, return_tensors="pt")["pixel_values"]
    ours = read_preprocessing(processor.to_dict(), model=name)
    found = ours(picture[None])
    assert found.shape == expected.shape
    std = torch.tensor(ours.std).view(1, 3, 1, 1)
    difference = (found - expected).abs() * std * 255
    assert float(difference.max()) < 1.1 and float(difference.mean()) < 0.3


def test_sizes_of_the_rules():
    def target(settings, height, width, multiple=1):
        return read_preprocessing(settings | NORMAL, model="m", multiple=multiple).target(height, width)

    assert target({"size": {"shortest_edge": 64, "longest_edge": 96}}, 100, 300) == (32, 96)
    assert target({"size": {"shortest_edge": 64}}, 128, 256) == (64, 128)
    assert target({"size": 64}, 100, 300) == (64, 64)
    assert target({"size": 64, "max_size": 100}, 128, 256) == (50, 100)
    crop = {"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": {"height": 65, "width": 65}}
    assert target(crop, 100, 100) == (65, 65)
    assert target({"size_divisor": 32}, 100, 65) == (96, 64)
    assert target({"size": {"height": 100, "width": 100}}, 64, 64, multiple=16) == (96, 96)
    assert target({"size": {"height": 60, "width": 60}, "ensure_multiple_of": 4}, 64, 64, multiple=6) == (
        60,
        60,
    )
    assert Preprocessing(model="m", size=(64, 64), multiple=16).at(100).target(50, 110) == (96, 224)


def test_the_gradient_passes():
    ours = read_preprocessing({"size": {"height": 48, "width": 48}, "resample": 3, **NORMAL}, model="m")
    images = torch.rand(1, 3, 64, 64).requires_grad_()
    ours(images).square().sum().backward()
    assert float(images.grad.abs().min()) >= 0 and float((images.grad != 0).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, "hands over bytes times 0.0078.*rescale_factor to 1/255"),
        ({"do_rescale": False}, "hands over bytes unscaled, not in"),
        ({"do_normalize": True, "image_mean": None}, "image_mean=None .* must give three numbers"),
        ({"image_mean": [0.5]}, r"image_mean=\[0.5\] .* must give three numbers"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "which are for bytes; divide both by 255"),
        ({"size": {"longest_edge": 640}}, r"scales to \{'longest_edge': 640\}, which is not understood"),
    ],
)
def test_processors_of_another_range_are_refused(settings, message):
    with pytest.raises(UserError, match=f"(?s)processor of some/model .*{message}"):
        read_preprocessing({**NORMAL, **settings}, model="some/model")


def test_pictures_that_are_too_small_or_do_not_fit():
    small = Preprocessing(model="some/model")
    with pytest.raises(UserError, match="24 x 40 px at 24 x 40, and needs at least 32 px a side; set `size`"):
        small(torch.rand(1, 3, 24, 40))
    assert small.at(32)(torch.rand(1, 3, 24, 40)).shape == (1, 3, 32, 53)
    rigid = read_preprocessing({"do_resize": False, **NORMAL}, model="some/model", multiple=14)
    with pytest.raises(
        UserError, match="a multiple of 14 px, and these have 64 x 64; set `size` to a multiple"
    ):
        rigid(torch.rand(1, 3, 64, 64))
    assert rigid.at(70)(torch.rand(1, 3, 64, 64)).shape == (1, 3, 70, 70)
    assert rigid(torch.rand(1, 3, 56, 70)).shape == (1, 3, 56, 70)
