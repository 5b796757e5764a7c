"""Tiny random checkpoints of perception models, saved as transformers saves real ones; a few thousand weights each."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file

NORMAL = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
NAMES = ["circle", "square", "triangle"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
PYRAMID = ["stage1", "stage2", "stage3", "stage4"]


def _swin(**changes):
    sizes = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    return hf.SwinConfig(image_size=64, drop_path_rate=0.1, out_features=PYRAMID, **sizes, **changes)


def _mask2former():
    config = hf.Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        train_num_points=16,
        **LABELS,
    )
    # masks of random weights hardly differ: larger ones give the tests something to see
    model = _spread(hf.Mask2FormerForUniversalSegmentation(config))
    return model, {"size": {"height": 64, "width": 64}, "size_divisor": 32, "resample": 2}


def _maskformer():
    decoder = hf.DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=6,
    )
    config = hf.MaskFormerConfig(
        backbone_config=_swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **LABELS
    )
    model = _spread(hf.MaskFormerForInstanceSegmentation(config))
    return model, {"size": {"shortest_edge": 64, "longest_edge": 96}, "size_divisor": 32, "resample": 2}


def _segformer(**labels):
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **(labels or LABELS),
    )
    return hf.SegformerForSemanticSegmentation(config), {"size": {"height": 64, "width": 64}, "resample": 2}


def _upernet():
    config = hf.UperNetConfig(
        backbone_config=_swin(), hidden_size=16, auxiliary_in_channels=32, auxiliary_channels=8, **LABELS
    )
    return hf.UperNetForSemanticSegmentation(config), {"size": {"height": 64, "width": 64}, "resample": 2}


def _deeplab():
    config = hf.MobileNetV2Config(depth_multiplier=0.25, output_stride=8, image_size=64, **LABELS)
    settings = {
        "size": {"shortest_edge": 72},
        "do_center_crop": True,
        "crop_size": {"height": 65, "width": 65},
    }
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model = hf.MobileNetV2ForSemanticSegmentation(config)
    for (
        weight
    ) in model.parameters():  # fifty layers of random weights pass nothing on unless they keep the variance
        if weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return model, {**settings, **normal, "resample": 2}


def _dpt(semantic=False):
    config = hf.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        **LABELS,
    )
    cls = hf.DPTForSemanticSegmentation if semantic else hf.DPTForDepthEstimation
    size = {
        "size": {"height": 64, "width": 64},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 8,
        "resample": 3,
    }
    return _spread(cls(config)), size


def _beit():
    config = hf.BeitConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
        use_absolute_position_embeddings=True,
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        **LABELS,
    )
    size = {"size": {"height": 64, "width": 64}, "resample": 3}
    return _spread(hf.BeitForSemanticSegmentation(config)), size


def _dinov2_config(**changes):
    return hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, **changes
    )


def _depth_anything():
    backbone = _dinov2_config(out_features=PYRAMID, reshape_hidden_states=False)
    config = hf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    size = {
        "size": {"height": 56, "width": 56},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "resample": 3,
    }
    return _spread(hf.DepthAnythingForDepthEstimation(config)), size


def _glpn():
    config = hf.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    return _spread(hf.GLPNForDepthEstimation(config)), {"size_divisor": 32, "do_normalize": False}


def _resnet():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], **LABELS)
    return hf.ResNetForImageClassification(config), {"size": {"shortest_edge": 64}, "resample": 3}


def _convnext():
    config = hf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    return hf.ConvNextForImageClassification(config), {"size": {"shortest_edge": 64}, "resample": 3}


def _swin_classifier():
    return hf.SwinForImageClassification(_swin()), {"size": {"height": 64, "width": 64}, "resample": 3}


def _dinov2():
    return hf.Dinov2Model(_dinov2_config()), {"size": {"shortest_edge": 56}, "resample": 3}


BUILDERS = {
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "segformer": _segformer,
    "segformer_stuff": lambda: _segformer(num_labels=171),  # of COCO-Stuff
    "upernet": _upernet,
    "deeplab": _deeplab,
    "dpt": _dpt,
    "dpt_semantic": lambda: _dpt(semantic=True),
    "beit": _beit,
    "depth_anything": _depth_anything,
    "glpn": _glpn,
    "resnet": _resnet,
    "convnext": _convnext,
    "swin": _swin_classifier,
    "dinov2": _dinov2,
}


def save_checkpoint(name: str, folder: Path) -> Path:
    """One of `BUILDERS`, or "vgg16" of eight channels, as a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "vgg16":
            return _save_vgg16(folder)
        model, settings = BUILDERS[name]()
    model.eval().save_pretrained(folder)
    normal = {} if settings.get("do_normalize") is False else NORMAL
    write_processor(folder, {"do_rescale": True, "rescale_factor": 1 / 255, **normal, **settings})
    return folder


def write_processor(folder: Path, settings: dict) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _save_vgg16(folder: Path) -> Path:
    weights, previous = {}, 3
    for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        weights[f"features.{index}.weight"] = torch.randn(8, previous, 3, 3) * (2 / (9 * previous)) ** 0.5
        weights[f"features.{index}.bias"] = torch.randn(8) * 0.1
        previous = 8
    weights["classifier.0.weight"] = torch.randn(4, 4)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    return folder


def _spread(model):
    """Random weights five times as large, so that answers differ from place to place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.mul_(5)
    return model
