"""What critics of real sizes store for backward, network and loss: bytes per picture, by hooks, random weights.

    python benchmarks/critic_memory.py            # writes benchmarks/results/critic_memory.json, a minute or two

Nothing is downloaded: the networks are built from their configs, and what autograd keeps does not depend on weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers as hf

from unifl.data import Batch, Sample, collate
from unifl.feedback import Critic, LayoutCritic, StyleCritic
from unifl.feedback.open_critic import ANSWERS
from unifl.feedback.perception import DepthCritic, QueryCritic
from unifl.feedback.preprocessing import Preprocessing
from unifl.feedback.pretrained import PretrainedNetwork
from unifl.feedback.vgg import VGG16Features

RESULT = Path(__file__).parent / "results" / "critic_memory.json"
PYRAMID = ["stage1", "stage2", "stage3", "stage4"]


CRITICS = {"instances": QueryCritic, "semantic": LayoutCritic, "depth": DepthCritic}  # the others: style
CLASSES = 171
"""Of semantic segmenters: those of COCO-Stuff."""


def stored_bytes(look: Callable[[torch.Tensor], object], given: list[torch.Tensor], side: int) -> int:
    """Bytes that autograd keeps of a look at a picture; what is given and the picture are there in any case."""
    images = torch.rand(1, 3, side, side)
    given = [*given, images]
    there = {tensor.untyped_storage().data_ptr() for tensor in given}
    storages, kept = {}, []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = look(images.requires_grad_())
    del output
    return sum(storages.values())


def vgg16() -> torch.nn.Module:
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    weights, previous = {}, 3
    for index, width in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), widths, strict=True):
        weights[f"features.{index}.weight"] = torch.randn(width, previous, 3, 3) * 0.02
        weights[f"features.{index}.bias"] = torch.zeros(width)
        previous = width
    return VGG16Features(weights)


def _mask2former() -> torch.nn.Module:
    swin = hf.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=PYRAMID
    )
    return hf.Mask2FormerForUniversalSegmentation(hf.Mask2FormerConfig(backbone_config=swin, num_labels=80))


def _depth_anything() -> torch.nn.Module:
    backbone = hf.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        out_indices=[3, 6, 9, 12],
        reshape_hidden_states=False,
    )
    return hf.DepthAnythingForDepthEstimation(hf.DepthAnythingConfig(backbone_config=backbone))


def _dinov2() -> torch.nn.Module:
    layers = ["stage3", "stage6", "stage9", "stage12"]
    return hf.Dinov2Backbone(
        hf.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, out_features=layers)
    )


# name: (builder, side in px, what is read)
NETWORKS = {
    "Mask2Former, Swin-T": (_mask2former, 384, "instances"),
    "SegFormer-B0": (
        lambda: hf.SegformerForSemanticSegmentation(hf.SegformerConfig(num_labels=CLASSES)),
        512,
        "semantic",
    ),
    "DeepLabV3+, MobileNetV2": (
        lambda: hf.MobileNetV2ForSemanticSegmentation(
            hf.MobileNetV2Config(output_stride=8, num_labels=CLASSES)
        ),
        513,
        "semantic",
    ),
    "DPT, ViT-B/16": (lambda: hf.DPTForDepthEstimation(hf.DPTConfig()), 384, "depth"),
    "Depth Anything, ViT-S/14": (_depth_anything, 518, "depth"),
    "VGG-16 to relu4_3": (vgg16, 512, "vgg16"),
    "ResNet-50": (lambda: hf.ResNetBackbone(hf.ResNetConfig(out_features=PYRAMID)), 512, "backbone"),
    "DINOv2, ViT-S/14": (_dinov2, 504, "backbone"),
}


def _batch(side: int) -> Batch:
    """One picture with one instance, and a class map."""
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
    semantic = torch.zeros(side, side, dtype=torch.int64)
    return collate([Sample(torch.rand(3, side, side), "", mask, torch.tensor([1]), semantic)])


def main() -> None:
    torch.manual_seed(0)
    found = {}
    for name, (build, side, read) in NETWORKS.items():
        model = build().eval()
        network = PretrainedNetwork(model, Preprocessing(model=name), ANSWERS[read])
        weights = [*network.parameters(), *network.buffers()]
        batch = _batch(side)
        row = {"side": side, "parameters": sum(parameter.numel() for parameter in model.parameters())}
        row["stored"] = stored_bytes(network, weights, side)
        for key, on in (("stored_with_loss", False), ("stored_with_checkpointing", True)):
            critic: Critic = CRITICS.get(read, StyleCritic)(network, checkpointing=on)
            row[key] = stored_bytes(partial(critic, batch=batch), [*weights, batch.semantic], side)
        found[name] = row
        print(name, {key: f"{size / 2**20:.1f} MiB" for key, size in row.items() if key.startswith("stored")})
    versions = {"torch": torch.__version__, "transformers": hf.__version__}
    RESULT.write_text(
        json.dumps({"dtype": "float32", "pictures": 1, **versions, "networks": found}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
