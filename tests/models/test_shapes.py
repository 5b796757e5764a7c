from __future__ import annotations

import json

import pytest
import torch

from unifl.errors import UserError
from unifl.models import make_generator
from unifl.models.shapes import FAMILIES_BY_NAME, SHAPES, require_shapes, shaped_pipeline
from unifl.testing import FAMILIES, tiny_folder, tiny_pipeline

# of the published checkpoints
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


def _counts(pipeline):
    return {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters())
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        if getattr(pipeline, name, None) is not None
    }


@pytest.mark.parametrize("family", SHAPES)
def test_a_family_has_the_parameters_of_its_checkpoint_and_takes_no_memory(family):
    pipeline = shaped_pipeline(family, dtype=torch.bfloat16)
    assert _counts(pipeline) == PUBLISHED[family]
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in pipeline.unet.parameters())
    generator = make_generator(pipeline)
    assert generator.image_size == {"sd15": (512, 512), "sd21": (768, 768), "sdxl": (1024, 1024)}[family]
    assert generator.is_xl == (family == "sdxl")
    assert generator.kind == ("v_prediction" if family == "sd21" else "epsilon")
    assert generator.device.type == "cpu"


def test_names_of_the_hub_lead_to_families():
    assert set(FAMILIES_BY_NAME.values()) == set(SHAPES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_its_configs_and_no_weights(family, tmp_path):
    folder = tiny_folder(family, tmp_path / "model")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    pipeline = shaped_pipeline(str(folder))
    real = tiny_pipeline(family)
    assert _counts(pipeline) == _counts(real)
    assert type(pipeline) is type(real)
    found, expected = make_generator(pipeline), make_generator(real)
    assert (found.kind, found.latent_shape, found.spacing) == (
        expected.kind,
        expected.latent_shape,
        expected.spacing,
    )


def test_shapes_that_cannot_be_had(tmp_path):
    with pytest.raises(UserError, match=r"no shapes are known for 'sdx'; did you mean 'sdxl'\?"):
        require_shapes("sdx")
    with pytest.raises(UserError, match=r"no shapes are known for 'flux'; known are sd15, sd21, sdxl"):
        require_shapes("flux")
    with pytest.raises(
        UserError, match=r"no configs of the model someone/model can be had.*--shapes sd15\|sd21\|sdxl"
    ):
        shaped_pipeline("someone/model")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(
        UserError, match="FluxPipeline are not supported; known are those of StableDiffusionPipeline"
    ):
        shaped_pipeline(str(tmp_path))
