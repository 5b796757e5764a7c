"""What can be wrong with a checkpoint, and what backward stores of one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from critic_cases import CASES, KINDS, SIDE, batch_of, opened, start
from safetensors.torch import load_file, save_file
from torch import nn

from tiny_checkpoints import write_processor
from unifl.data import Sample, collate
from unifl.errors import UserError
from unifl.feedback import (
    DepthConfig,
    EdgesConfig,
    InstancesConfig,
    SemanticConfig,
    StyleConfig,
    open_critic,
)
from unifl.feedback.critics import StyleCritic
from unifl.feedback.perception import DepthCritic
from unifl.feedback.pretrained import label_names, load_checkpoint
from unifl.feedback.vgg import LAYERS, VGG16Features, load_vgg16
from unifl.losses.style import gram


def _stored(look, network, images, *annotation):
    """Bytes that autograd keeps of look(images), each storage once; weights, pictures, annotation are there anyway."""
    given = [*network.parameters(), *network.buffers(), images, *annotation]
    there = {tensor.untyped_storage().data_ptr() for tensor in given}
    storages, kept = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = look(images)
    del output
    return sum(storages.values())


def _critic_bytes(case, checkpoint, checkpointing, b=2):
    """Of network and loss, and those of the target that the critic reads off the real pictures."""
    critic, batch = opened(case, checkpoint, checkpointing=checkpointing), batch_of(b)
    kept = _stored(lambda images: critic(images, batch), critic.network, start(batch), batch.semantic)
    with torch.no_grad():
        if isinstance(critic, StyleCritic):
            return kept, sum(gram(features).nbytes for features in critic.network(batch.images))
        return kept, critic.network(batch.images).nbytes if isinstance(critic, DepthCritic) else 0


@pytest.mark.parametrize("case", [case for case in CASES if case != "edges"])
def test_checkpointing_stores_pictures_and_targets_and_nothing_of_network_and_loss(case, checkpoint):
    """As docs/critics.md says: what is stored grows with the batch; with checkpointing that is all."""
    plain, _ = _critic_bytes(case, checkpoint, False)
    kept, target = _critic_bytes(case, checkpoint, True)
    assert kept == target < plain / 10
    assert plain > 2 * 3 * SIDE * SIDE * 4
    # what backward then needs at once is what one picture takes
    assert 1.8 < plain / _critic_bytes(case, checkpoint, False, b=1)[0] < 2.1


def test_vgg16_stores_what_the_formula_says(checkpoint):
    def bytes_per_pixel(widths):
        """4 [sum over convolutions c / 4^d + 3 sum over poolings c / 4^d], up to relu4_3; float32."""
        rectified = sum(
            width * count / 4**d for d, (width, count) in enumerate(zip(widths, (2, 2, 3, 3), strict=True))
        )
        pooled = 3 * sum(width / 4 ** (d + 1) for d, width in enumerate(widths[:3]))
        return 4 * (rectified + pooled)

    assert bytes_per_pixel([64, 128, 256, 512]) == 1392  # as docs/critics.md says
    network, images = opened("vgg16", checkpoint).network.model, start(batch_of())
    assert _stored(network, network, images) == bytes_per_pixel([8] * 4) * 2 * SIDE * SIDE


@pytest.mark.parametrize("case", [case for case in KINDS if case != "edges"])
def test_nothing_is_stored_where_no_gradient_is_needed(case, checkpoint):
    critic, batch = opened(case, checkpoint), batch_of()
    assert _stored(critic.network, critic.network, batch.images) == 0  # pictures that ask for none
    with torch.no_grad():
        assert _stored(lambda images: critic(images, batch), critic.network, start(batch)) == 0


def test_dpt_does_without_the_part_of_its_first_layer_that_adds_to_nothing(checkpoint, tmp_path):
    """As in checkpoints of its original layout."""
    whole = load_checkpoint(checkpoint("dpt"), "depth")[0]
    shutil.copytree(checkpoint("dpt"), tmp_path / "dpt")
    weights = load_file(tmp_path / "dpt" / "model.safetensors")
    idle = [key for key in weights if "fusion_stage.layers.0.residual_layer1." in key]
    assert len(idle) == 4
    save_file(
        {k: v for k, v in weights.items() if k not in idle},
        tmp_path / "dpt" / "model.safetensors",
        {"format": "pt"},
    )
    model = load_checkpoint(str(tmp_path / "dpt"), "depth")[0]
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pixels).predicted_depth, whole(pixels).predicted_depth)


# --- VGG-16 ----------------------------------------------------------------------------------------------


def _by_torchvision_layout(weights, upto):
    """`features` of vgg16 as torchvision numbers them, built from its published configuration."""
    layers: list[nn.Module] = []
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        index = len(layers)
        kernel = weights[f"features.{index}.weight"]
        convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
        convolution.load_state_dict({"weight": kernel, "bias": weights[f"features.{index}.bias"]})
        layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers[:upto])


def test_vgg16_is_torchvisions(checkpoint):
    weights = load_file(f"{checkpoint('vgg16')}/model.safetensors")
    pixels = torch.randn(2, 3, 48, 48)
    found = VGG16Features(weights)(pixels)
    for features, upto in zip(found, (4, 9, 16, 23), strict=True):  # behind the ReLU of each named layer
        torch.testing.assert_close(features, _by_torchvision_layout(weights, upto)(pixels))
    assert [f.shape[-1] for f in found] == [48, 24, 12, 6]
    deep = VGG16Features(weights, ["relu5_3", "relu1_1"])(pixels)
    torch.testing.assert_close(deep[1], _by_torchvision_layout(weights, 30)(pixels))
    assert len(LAYERS) == 13 and len(VGG16Features(weights, ["relu1_1"]).convolutions) == 1


def test_vgg16_sees_imagenets_normalisation(checkpoint):
    critic, images = opened("vgg16", checkpoint), batch_of().images
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = critic.network.model((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    for found, features in zip(critic.network(images), expected, strict=True):
        torch.testing.assert_close(found, features)


def test_other_weights_than_vgg16_are_refused(checkpoint, tmp_path):
    weights = load_file(f"{checkpoint('vgg16')}/model.safetensors")
    nineteen = weights | {"features.16.weight": torch.zeros(8, 8, 3, 3), "features.16.bias": torch.zeros(8)}
    save_file(nineteen, tmp_path / "vgg19.safetensors")
    with pytest.raises(UserError, match=r"no weights of VGG-16: 2 names differ .*features\.16\.bias"):
        load_vgg16(str(tmp_path / "vgg19.safetensors"))
    with pytest.raises(UserError, match=r"VGG-16 has no layer 'conv3'; it has relu1_1"):
        load_vgg16(checkpoint("vgg16"), ["conv3"])
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_vgg16(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read the weights"):
        load_vgg16(str(tmp_path))
    with pytest.raises(UserError, match="there is no checkpoint at ./nowhere/vgg.safetensors"):
        load_vgg16("./nowhere/vgg.safetensors")
    with pytest.raises(UserError, match="cannot reach nobody/vgg16, as a file, a folder or on the hub"):
        load_vgg16("nobody/vgg16")


# --- bad checkpoints -------------------------------------------------------------------------------------


def _copy(checkpoint, name, tmp_path):
    return shutil.copytree(checkpoint(name), tmp_path / name)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (InstancesConfig, "segformer", "holds SegformerForSemanticSegmentation, but .* Mask2FormerFor"),
        (SemanticConfig, "dpt", "holds DPTForDepthEstimation, but this critic needs a ...ForSemantic"),
        (DepthConfig, "dpt_semantic", "holds DPTForSemanticSegmentation, but .* a ...ForDepthEstimation"),
        (DepthConfig, "resnet", "holds ResNetForImageClassification.*change `kind` or `model`"),
        (SemanticConfig, "mask2former", "holds Mask2FormerForUniversalSegmentation"),
    ],
)
def test_another_kind_of_model_is_named(config, name, message, checkpoint):
    with pytest.raises(UserError, match=message):
        open_critic(config(model=checkpoint(name)), name="c")


def test_a_backbone_and_its_stages(checkpoint):
    with pytest.raises(
        UserError, match="holds .*, but this critic needs a model that transformers offers as a back"
    ):
        open_critic(StyleConfig(model=checkpoint("segformer"), network="backbone"), name="c")
    with pytest.raises(UserError, match="has no stage 'stage9'; it has stem, stage1"):
        open_critic(StyleConfig(model=checkpoint("resnet"), network="backbone", layers=["stage9"]), name="c")
    by_default = open_critic(StyleConfig(model=checkpoint("resnet"), network="backbone"), name="c")
    assert [f.shape[1] for f in by_default.network(batch_of().images)] == [8, 8, 16, 16]


def test_the_backbone_has_the_weights_of_the_classifier(checkpoint):
    """Not random ones: the features are those of the whole model's hidden states."""
    import transformers as hf

    critic, images = opened("resnet", checkpoint), batch_of().images
    whole = hf.ResNetForImageClassification.from_pretrained(checkpoint("resnet")).eval()
    states = whole(critic.network.preprocessing(images), output_hidden_states=True).hidden_states
    for found, state in zip(critic.network(images), states[1:], strict=True):
        torch.testing.assert_close(found, state)


def test_no_such_folder_no_model_and_no_network(tmp_path):
    for name, message in (
        (str(tmp_path / "none"), "there is no checkpoint at .*none; check the path"),
        (str(tmp_path), r"holds no model: it has no config\.json"),
        ("nobody/segformer", "cannot reach nobody/segformer, as a folder or on the hub .*give the folder"),
    ):
        with pytest.raises(UserError, match=message):
            open_critic(SemanticConfig(model=name), name="c")
    (tmp_path / "config.json").write_text('{"model_type": "solo"}')
    with pytest.raises(UserError, match="is no model that transformers knows"):
        open_critic(SemanticConfig(model=str(tmp_path)), name="c")


def test_missing_weights_are_not_made_up(checkpoint, tmp_path):
    folder = _copy(checkpoint, "segformer", tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "classifier" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 2 weights of SegformerFor.*classifier.*would be random"):
        open_critic(SemanticConfig(model=str(folder)), name="c")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the weights of .*safetensors"):
        open_critic(SemanticConfig(model=str(folder)), name="c")


def test_weights_of_another_size(checkpoint, tmp_path):
    folder = _copy(checkpoint, "segformer", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["decoder_hidden_size"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"do not fit its config\.json"):
        open_critic(SemanticConfig(model=str(folder)), name="c")


def test_a_processor_that_is_not_there_or_of_another_range(checkpoint, tmp_path):
    folder = _copy(checkpoint, "segformer", tmp_path)
    write_processor(folder, {"do_rescale": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    with pytest.raises(UserError, match="hands over bytes unscaled"):
        open_critic(SemanticConfig(model=str(folder)), name="c")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json"):
        open_critic(SemanticConfig(model=str(folder)), name="c")


def test_label_names_are_read_from_the_config(checkpoint, tmp_path):
    assert label_names(checkpoint("segformer")) == ["circle", "square", "triangle"]
    folder = _copy(checkpoint, "segformer", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"names no labels \(id2label\); list `categories` instead"):
        label_names(str(folder))


# --- bad annotations and settings ------------------------------------------------------------------------


def test_labels_that_the_model_does_not_have(checkpoint):
    batch = batch_of()
    far = batch.with_instances(batch.masks, [torch.tensor([89]), torch.tensor([1])])
    for case in ("mask2former", "mask2former-queries"):
        with pytest.raises(
            UserError, match=r"knows the labels 0 to 2, but the annotation holds 1 to 89; .*ids"
        ):
            opened(case, checkpoint)(batch.images, far)
    with pytest.raises(UserError, match="knows the labels 0 to 0"):
        opened("mask2former", checkpoint, num_categories=1)(batch.images, batch)
    odd = batch.with_semantic(torch.where(batch.semantic == 1, 3, batch.semantic))
    with pytest.raises(
        UserError, match="'segformer' knows the labels 0 to 2, but the annotation holds 0 to 3"
    ):
        opened("segformer", checkpoint)(batch.images, odd)
    with pytest.raises(UserError, match="num_categories is 4, but .* has 3 categories"):
        opened("mask2former", checkpoint, num_categories=4)
    bare = collate([Sample(image, "a") for image in batch.images])
    for case in ("mask2former", "segformer"):
        with pytest.raises(UserError, match="gt_source=pseudo"):
            opened(case, checkpoint)(bare.images, bare)


def test_pixels_marked_255_do_not_count(checkpoint):
    critic, batch = opened("segformer", checkpoint), batch_of()
    images = start(batch)
    logits = F.interpolate(critic.network(images), size=(SIDE, SIDE), mode="bilinear")
    counted = F.cross_entropy(logits, batch.semantic.clamp(max=2), reduction="none")[:, 4:].mean((1, 2))
    torch.testing.assert_close(critic(images, batch), counted)


def test_pictures_smaller_than_the_backbone_can_take(checkpoint):
    with pytest.raises(UserError, match="needs at least 32 px a side; set `size`"):
        opened("vgg16", checkpoint)(batch_of(side=24).images, batch_of(side=24))
    critic = opened("vgg16", checkpoint, size=48)
    assert bool(critic(start(batch_of(side=24)), batch_of(side=24)).isfinite().all())


def test_a_vision_transformer_gets_a_multiple_of_its_patch(checkpoint):
    assert load_checkpoint(checkpoint("dpt"), "depth")[1].multiple == 8
    critic = opened("dinov2", checkpoint)
    assert critic.network(batch_of().images)[0].shape[-2:] == (4, 4)  # 64 px become 56 = 4 * 14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InstancesConfig(model="m", size=0), "size is 0"),
        (lambda: InstancesConfig(model="m", num_categories=0), "num_categories is 0"),
        (lambda: InstancesConfig(model="m", score_threshold=2.0), "score_threshold is 2.0"),
        (lambda: DepthConfig(model="m", gradient_weight=-1.0), "gradient_weight is -1.0"),
        (lambda: EdgesConfig(sigma=-1.0), "sigma is -1.0"),
        (lambda: EdgesConfig(threshold=0.0), "threshold is 0.0; it must be above 0, or null"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_solo_takes_no_settings_of_other_networks():
    from unifl.world.assets import ASSETS

    with pytest.raises(UserError, match="holds a SOLO, which looks at pictures as they are"):
        open_critic(InstancesConfig(model=str(ASSETS / "critics"), size=64), name="c")
