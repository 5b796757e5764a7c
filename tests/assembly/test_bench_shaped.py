from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from unifl.assembly import bench_shaped
from unifl.assembly.bench_lcd import AGAINST
from unifl.assembly.bench_shaped import NARROWER, SIDE, narrow_pipeline, shaped_parts
from unifl.cli import app
from unifl.errors import UserError
from unifl.models.shapes import shaped_pipeline


def _operations(pipeline, side):
    """Of one pass of UNet, encoder and text encoder over one picture, counted on shapes."""
    unet, encoder, text = pipeline.unet, pipeline.vae, pipeline.text_encoder

    def of(work):
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    width, length = unet.config.cross_attention_dim, pipeline.tokenizer.model_max_length
    return (
        of(
            lambda: unet(
                torch.randn(1, 4, side // 8, side // 8), torch.ones(1), torch.randn(1, length, width)
            )
        ),
        of(lambda: encoder.encode(torch.randn(1, 3, side, side))),
        of(lambda: text(torch.zeros(1, length, dtype=torch.long))),
    )


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_a_narrow_model_has_the_proportions_of_the_published_one(family):
    published = shaped_pipeline(family)
    with torch.device("meta"):
        narrow = narrow_pipeline(published, narrower=NARROWER, side=SIDE)
    assert narrow.unet.config.block_out_channels == (80, 160, 320, 320)
    unet, encoder, text = _operations(published, 512)
    narrow_unet, narrow_encoder, narrow_text = _operations(narrow, SIDE)
    assert narrow_unet < unet / 50
    assert narrow_encoder / narrow_unet == pytest.approx(encoder / unet, rel=0.05)
    assert narrow_text / narrow_unet == pytest.approx(text / unet, abs=0.02)


def test_parts_are_made_anew_and_alike():
    state = torch.get_rng_state()
    parts = shaped_parts("sd15", narrower=8, side=64)
    first, second = parts.pipeline(), parts.pipeline()
    assert first.unet is not second.unet and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.unet.conv_in.weight, second.unet.conv_in.weight)
    assert parts.sources["images"][0].image.shape == (3, 64, 64)


def test_the_command_measures_it(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_shaped, "shaped_parts", partial(shaped_parts, narrower=8, side=64))
    sizes = ["--pairs", "2", "--batch-size", "1"]
    result = CliRunner().invoke(app, ["bench", "rg-lcd", "--shapes", "sd15", *sizes, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (case,) = json.loads((tmp_path / "timings.json").read_text())["cases"]
    assert case["id"] == AGAINST and case["memory"]["step"] > 0


@pytest.mark.parametrize(
    ("family", "message"), [("sdxl", "has two"), ("sd14", "no shapes are known for 'sd14'")]
)
def test_other_families_are_refused(family, message):
    with pytest.raises(UserError, match=message):
        shaped_parts(family)


def test_shapes_belong_to_distillation():
    result = CliRunner().invoke(app, ["bench", "unifl", "--shapes", "sd15"])
    assert result.exit_code == 2 and "--shapes is for rg-lcd" in result.output
