"""Features against transformers' own models behind Pillow, and the Inception of FID against its manifest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "scorers"))

from tiny_scorers import PROCESSOR, SIDE, clip, spread

from unifl.errors import UserError
from unifl.feedback.features import FEATURES, open_features
from unifl.feedback.features.inception import Inception, _BlockE, inception_from

NORMAL = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
MANIFEST = json.loads((Path(__file__).parent / "inception_manifest.json").read_text())


@pytest.fixture(scope="module")
def pictures():
    """Smooth pictures of 48 x 64 pixels, in whole 255ths."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(3, 3, 6, 8, generator=generator)
    images = torch.nn.functional.interpolate(small, size=(48, 64), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def files_of(pictures):
    return [Image.fromarray((p.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for p in pictures]


def pixels(files, mean, std):
    numbers = np.stack([np.asarray(file, dtype=np.float32) / 255 for file in files])
    return torch.from_numpy((numbers - np.array(mean)) / np.array(std)).permute(0, 3, 1, 2).float()


def dinov2(folder):
    config = hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = spread(hf.Dinov2Model(config))
    model.save_pretrained(folder)
    settings = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 28, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **NORMAL}))
    return model


def test_clip_gives_the_embedding_behind_pillow(pictures, tmp_path):
    model = clip(tmp_path)
    features = open_features("clip", weights=str(tmp_path))
    # as CMMD's code has it: the middle square is cut out, and then scaled
    files = [file.crop((8, 0, 56, 48)).resize((SIDE, SIDE), Image.BICUBIC) for file in files_of(pictures)]
    with torch.no_grad():
        shown = pixels(files, PROCESSOR["image_mean"], PROCESSOR["image_std"])
        there = model.get_image_features(pixel_values=shown)
        there = there if isinstance(there, torch.Tensor) else there.pooler_output
    there = there / there.norm(dim=-1, keepdim=True)
    found = features(pictures)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    between = (there[0] - there[1]).abs().max()
    assert (found - there).abs().max() < 0.05 * between


def test_dinov2_gives_the_class_token_behind_pillow(pictures, tmp_path):
    model = dinov2(tmp_path)
    features = open_features("dinov2", weights=str(tmp_path))
    files = [file.resize((28, 28), Image.BICUBIC) for file in files_of(pictures)]  # as dgm-eval does
    with torch.no_grad():
        hidden = model(pixel_values=pixels(files, **{k[6:]: v for k, v in NORMAL.items()})).last_hidden_state
    found = features(pictures)
    assert found.shape == (3, 16)
    between = (hidden[0, 0] - hidden[1, 0]).abs().max()
    assert (found - hidden[:, 0]).abs().max() < 0.05 * between
    alone = torch.cat([features(picture[None]) for picture in pictures])
    torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in features.network.parameters())


def test_weights_that_are_missing_or_surplus_are_an_error(tmp_path):
    model = dinov2(tmp_path)
    before = open_features("dinov2", weights=str(tmp_path)).sha256()
    state = model.state_dict()
    save_file({k: v for k, v in state.items() if "layer.1.norm1" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lacks 2 weights"):
        open_features("dinov2", weights=str(tmp_path))
    save_file({**state, "head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"holds 1 weights \(head.weight\)"):
        open_features("dinov2", weights=str(tmp_path))
    save_file({k: v * 1.5 for k, v in state.items()}, tmp_path / "model.safetensors")
    assert open_features("dinov2", weights=str(tmp_path)).sha256() != before
    (tmp_path / "preprocessor_config.json").unlink()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json"):
        open_features("dinov2", weights=str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'dinov2'"):
        open_features("dino2")


def random_state():
    """Weights in the published layout that keep the size of activations."""
    generator, state = torch.Generator().manual_seed(1), {}
    for key, shape in MANIFEST.items():
        if key.endswith(("running_var", "bn.weight")):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) == 4:
            scale = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            state[key] = scale * torch.randn(shape, generator=generator)
        else:
            state[key] = 0.1 * torch.randn(shape, generator=generator)
    return state


def test_inception_has_the_names_and_shapes_of_the_published_file():
    own = {k: list(v.shape) for k, v in Inception().state_dict().items() if "num_batches" not in k}
    assert own == MANIFEST
    # torchvision states 27,161,264 for 1000 classes with an auxiliary head of 3,326,696
    assert sum(p.numel() for p in Inception().parameters()) == 27_161_264 - 3_326_696 + 8 * 2049


def test_inception_opens_its_file_and_refuses_another(pictures, tmp_path):
    state = random_state()
    place = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(state | {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)}, place)
    features = open_features("inception", weights=str(place))
    found = features(pictures)
    assert found.shape == (3, 2048) and FEATURES["inception"].weights == place.name
    assert (found[0] - found[1]).abs().max() > 0.01
    # the reference scaling: bilinear, without antialiasing
    large = torch.nn.functional.interpolate(pictures, size=(299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features(large), found, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"lacks 1 weights \(fc.bias\)"):
        inception_from({k: v for k, v in state.items() if k != "fc.bias"}, "file.pth")
    with pytest.raises(UserError, match=r"holds 1 weights \(AuxLogits.fc.weight\)"):
        inception_from({**state, "AuxLogits.fc.weight": torch.zeros(1)}, "file.pth")
    with pytest.raises(UserError, match=r"fc.weight has the shape \(1000, 2048\), and the Inception of FID"):
        inception_from({**state, "fc.weight": torch.zeros(1000, 2048)}, "file.pth")
    with pytest.raises(UserError, match="there are no weights at"):
        open_features("inception", weights=str(tmp_path / "nothing.pth"))


def test_pools_are_those_of_the_published_network():
    """Means leave the padding out, and the last block takes maxima: on ones, with the weights of 1, both give 1."""
    for maxima in (False, True):
        block = _BlockE(4, maxima=maxima).eval()
        with torch.no_grad():
            block.branch_pool.conv.weight.fill_(0.25)
        found = block(torch.ones(1, 4, 8, 8))[:, -192:]
        torch.testing.assert_close(found, torch.full_like(found, 1 / (1 + 0.001) ** 0.5))
        peak = torch.zeros(1, 4, 8, 8)
        peak[:, :, 4, 4] = 1
        found = block(peak)[0, -1, 3:6, 3:6]
        expected = 1.0 if maxima else 1 / 9
        torch.testing.assert_close(found, torch.full_like(found, expected / (1 + 0.001) ** 0.5))
    assert isinstance(Inception().Mixed_7c, nn.Module) and Inception().Mixed_7c.maxima
    assert not Inception().Mixed_7b.maxima
