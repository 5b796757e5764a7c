"""Recipes that name checkpoints and COCO's files, trained for a step on the tiny model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from unifl.assembly import resolve, sources
from unifl.assembly.build import assemble
from unifl.assembly.data_config import CocoConfig
from unifl.assembly.forecast import plan_recipe
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.config import dump
from unifl.errors import UserError
from unifl.feedback import DenoiserConfig, SemanticConfig
from unifl.methods.base import MicroBatch
from unifl.randomness import Key

NAMES = ["circle", "square", "triangle"]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Two pictures of 40 x 48 with a square each; its categories in another order than the checkpoints'."""
    folder = tmp_path_factory.mktemp("coco")
    for name in ("pictures", "maps"):
        (folder / name).mkdir()
    images, captions, annotations = [], [], []
    for number in (1, 2):
        values = np.zeros((40, 48, 3), np.uint8)
        values[10:30, 12 : 20 + 8 * number] = 200
        Image.fromarray(values).save(folder / "pictures" / f"{number}.png")
        Image.fromarray(np.where(values[..., 0] > 0, 1, 2).astype(np.uint8)).save(
            folder / "maps" / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 48})
        captions.append({"id": number, "image_id": number, "caption": "a square"})
        right = 20.0 + 8 * number
        polygon = [12.0, 10.0, right, 10.0, right, 30.0, 12.0, 30.0]
        annotations.append({"id": number, "image_id": number, "category_id": 5, "segmentation": [polygon]})
    categories = [{"id": 5, "name": "square"}, {"id": 9, "name": "circle"}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return folder


def _critics(checkpoint):
    def of(name, **settings):
        return {"model": checkpoint(name), "size": 32, "checkpointing": True} | settings

    return {
        "dense": of("mask2former", kind="instances", size=64),
        "queries": of("mask2former", kind="instances", size=64, reading="queries", num_categories=3),
        "layout": of("segformer_stuff", kind="semantic"),
        "depth": of("dpt", kind="depth", gradient_weight=0.25),
        "edges": {"kind": "edges", "sigma": 1.0, "threshold": 0.1},
        "vgg": of("vgg16", kind="style"),
        "backbone": of("resnet", kind="style", network="backbone", layers=["stage1"]),
    }


def _recipe(checkpoint, coco, critics=None, **perceptual):
    critics = _critics(checkpoint) if critics is None else critics
    return {
        "output_dir": "run",
        "model": {"pretrained_model_name_or_path": "tiny", "train": {"kind": "lora", "rank": 2}},
        "method": {
            "kind": "unifl",
            "decode": {"checkpoint": True, "dtype": "bfloat16"},
            "perceptual": {
                "weights": dict.fromkeys(critics, 0.1),
                "num_steps": 4,
                "start": 2,
                "stop": [0, 1],
                **perceptual,
            },
        },
        "critics": critics,
        "data": {
            "images": {
                "kind": "coco",
                "images": str(coco / "pictures"),
                "captions": str(coco / "captions.json"),
                "instances": str(coco / "instances.json"),
                "stuff": str(coco / "maps"),
                "labels_of": checkpoint("mask2former"),
            }
        },
        "training": {
            "max_train_steps": 1,
            "train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 0,
        },
    }


def _step(raw):
    """The method of a recipe, and its losses on both pictures after a backward pass."""
    method = assemble(load_recipe(raw)).method
    source = method.sources["images"]
    batch = MicroBatch(key=Key(0, 0, (0, 1)), data={"images": [source[0], source[1]]})
    output = method.step("student", batch)
    sum(output.losses.values()).backward()
    return method, output.losses


@pytest.mark.parametrize("gt_source", ["annotation", "pseudo"])
def test_a_step_of_unifl_with_every_kind_of_critic(gt_source, workspace, checkpoint, coco):
    raw = _recipe(checkpoint, coco, gt_source=gt_source)
    _, losses = _step(raw)
    assert set(losses) == {f"perceptual/{name}" for name in raw["critics"]}
    assert all(math.isfinite(float(loss.detach())) and bool(loss > 0) for loss in losses.values())


@pytest.mark.parametrize("name", ["dense", "layout", "depth", "edges", "vgg"])
def test_each_critic_alone_trains_the_model(name, workspace, checkpoint, coco):
    """The gradient comes through the critic, the decoder and the one graded evaluation to every adapter."""
    method, _ = _step(_recipe(checkpoint, coco, {name: _critics(checkpoint)[name]}))
    first = method.sources["images"][0]
    assert first.image.shape == (3, 32, 32) and first.masks.shape == (1, 32, 32)
    assert first.labels.tolist() == [1]  # the label that the checkpoint calls a square
    adapters = method.generator.trainable_parameters().items()
    gradients = [parameter.grad for key, parameter in adapters if "lora_B" in key]
    assert gradients and all(gradient is not None for gradient in gradients)
    assert float(torch.stack([gradient.norm() for gradient in gradients]).max()) > 0


def test_a_whole_run_with_a_checkpoint_and_coco(workspace, checkpoint, coco):
    critics = {name: _critics(checkpoint)[name] for name in ("layout", "edges")}
    result = run_recipe(load_recipe(_recipe(checkpoint, coco, critics)), progress=False)
    assert result.steps == 1 and result.last is not None
    assert set(result.last.losses) == {"student/perceptual/layout", "student/perceptual/edges"}
    saved = load_recipe(workspace / "run" / "config.yaml")
    assert saved.critics["layout"] == SemanticConfig(**critics["layout"])
    assert saved.data["images"].labels_of == checkpoint("mask2former")


def test_older_forms_of_critics_and_data_still_work(workspace):
    raw = {
        "output_dir": "run",
        "model": {"pretrained_model_name_or_path": "tiny"},
        "data": {"images": "world:scenes"},
    }
    raw["method"] = {"kind": "unifl", "perceptual": {"weights": {"a": 1.0, "b": 1.0}}}
    raw["critics"] = {"a": "world:critics/style", "b": {"path": "assembly_toy:BlurCritic"}}
    recipe = load_recipe(raw)
    assert (
        recipe.critics["a"] == "world:critics/style" and recipe.critics["b"].path == "assembly_toy:BlurCritic"
    )
    assert load_recipe(dump(recipe)) == recipe


def _critic_of(**settings):
    raw = {
        "output_dir": "run",
        "model": {"pretrained_model_name_or_path": "tiny"},
        "critics": {"mine": settings},
    }
    raw["method"] = {"kind": "unifl", "perceptual": {"weights": {"mine": 1.0}}}
    return load_recipe(raw).critics["mine"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "depht", "model": "m"},
            "critics.mine has the unknown kind 'depht'; .*did you mean 'depth'",
        ),
        ({"kind": "depth", "model": "m", "reading": "dense"}, r"unknown key 'critics\.mine\.reading'"),
        ({"kind": "depth"}, r"critics\.mine\.model: required, but not given"),
        (
            {"kind": "instances", "model": "m", "reading": "sparse"},
            r"critics\.mine\.reading: .*'dense' or 'queries'",
        ),
        ({"kind": "edges", "sigma": -1}, r"critics\.mine: sigma is -1"),
        ({"path": "a:b", "modle": "m"}, r"unknown key 'critics\.mine\.modle'"),
    ],
)
def test_settings_are_checked_as_the_recipe_is_read(settings, message):
    with pytest.raises(UserError, match=message):
        _critic_of(**settings)


def test_errors_say_which_critic_or_source(checkpoint, coco):
    wrong = _critic_of(kind="depth", model=checkpoint("segformer"))
    with pytest.raises(UserError, match=r"critics\.mine: .* holds SegformerForSemanticSegmentation"):
        resolve.critic(wrong, name="mine")
    missing = CocoConfig(images="nowhere", captions="none.json")
    with pytest.raises(UserError, match=r"data\.images: there is no folder nowhere of pictures"):
        sources.source(missing, name="images")
    with pytest.raises(UserError, match="labels_of and categories both order the labels"):
        CocoConfig(images="a", captions="b", labels_of="c", categories=["d"])


def test_labels_beyond_the_model_are_told_before_training(workspace, checkpoint, coco):
    raw = _recipe(checkpoint, coco, {"layout": {"kind": "semantic", "model": checkpoint("segformer")}})
    Image.fromarray(np.full((40, 48), 0, np.uint8)).save(workspace / "1.png")  # nothing wrong in the first
    Image.fromarray(np.full((40, 48), 99, np.uint8)).save(workspace / "2.png")
    raw["data"]["images"]["stuff"] = str(workspace)
    with pytest.raises(
        UserError, match="'layout' knows the labels 0 to 2, but the annotation holds 170 to 170"
    ):
        assemble(load_recipe(raw))


def test_a_run_with_the_model_itself_as_critic(workspace, checkpoint, coco):
    critics = {"perception": {"kind": "denoiser", "layer": "down_last", "times": [0.2, 0.6], "seed": 3}}
    raw = _recipe(checkpoint, coco, critics)
    method, losses = _step(raw)
    assert set(losses) == {"perceptual/perception"} and float(losses["perceptual/perception"].detach()) > 0
    adapters = method.generator.trainable_parameters().items()
    assert all(parameter.grad is not None for key, parameter in adapters if "lora_B" in key)
    assert method.generator.roles.names == ("student", "reference")
    result = run_recipe(load_recipe(raw), progress=False)
    assert result.steps == 1
    saved = load_recipe(workspace / "run" / "config.yaml")
    assert saved.critics["perception"] == DenoiserConfig(layer="down_last", times=(0.2, 0.6), seed=3)
    with pytest.raises(UserError, match="critics.perception: layer is 7: blocks go by number"):
        assemble(load_recipe(_recipe(checkpoint, coco, {"perception": {"kind": "denoiser", "layer": 7}})))


def test_a_plan_leaves_the_model_as_critic_out(workspace, checkpoint, coco):
    raw = _recipe(checkpoint, coco, {"perception": {"kind": "denoiser"}})
    found = plan_recipe(raw, shapes="sd15")
    assert any("the critic perception (denoiser)" in line for line in found.left_out)
