"""The convolutional part of VGG-16, read from torchvision's layout, without torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.pretrained import find_place

_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Indices of the convolutions in `features`; a pooling by 2 stands between blocks."""

LAYERS = {f"relu{b + 1}_{i + 1}": index for b, block in enumerate(_BLOCKS) for i, index in enumerate(block)}
"""Names of the activations after each convolution."""

DEFAULT_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
"""Those of Johnson et al., arXiv 1603.08155; UniFL does not say which it takes."""


class VGG16Features(nn.Module):
    """Activations of VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) at chosen layers.

    Args:
        weights: State dict with `features.<index>.weight` and `.bias` as in torchvision; the rest is ignored, and
            so are convolutions behind the last chosen layer.
        layers: Names as in `LAYERS`.

    Raises:
        UserError: An unknown layer, or weights of another network (VGG-19, VGG with batch norm, ...).
    """

    def __init__(self, weights: Mapping[str, Tensor], layers: Sequence[str] = DEFAULT_LAYERS) -> None:
        super().__init__()
        for layer in layers:
            if layer not in LAYERS:
                raise UserError(f"VGG-16 has no layer {layer!r}; it has {', '.join(LAYERS)}")
        found = {key for key in weights if key.startswith("features.")}
        wanted = {f"features.{i}.{part}" for i in LAYERS.values() for part in ("weight", "bias")}
        if found != wanted:
            odd = sorted(found ^ wanted)
            raise UserError(
                f"these are no weights of VGG-16: {len(odd)} names differ from torchvision's features, such as "
                f"{odd[0]}; use those of vgg16 without batch norm (timm/vgg16.tv_in1k)"
            )
        self._chosen = sorted(LAYERS[layer] for layer in layers)
        self.convolutions = nn.ModuleDict()
        for index in LAYERS.values():
            if index <= self._chosen[-1]:
                kernel = weights[f"features.{index}.weight"]
                convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                convolution.load_state_dict({"weight": kernel, "bias": weights[f"features.{index}.bias"]})
                self.convolutions[str(index)] = convolution

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Activations, from fine to coarse.

        Args:
            pixel_values: Normalised by mean and standard deviation of ImageNet.
        """
        features, x = [], pixel_values
        for number, block in enumerate(_BLOCKS):
            if number and str(block[0]) in self.convolutions:
                x = F.max_pool2d(x, 2)
            for index in block:
                if str(index) in self.convolutions:
                    x = F.relu(self.convolutions[str(index)](x))
                    if index in self._chosen:
                        features.append(x)
        return features


def load_vgg16(
    name: str, layers: Sequence[str] | None = None, *, revision: str | None = None
) -> VGG16Features:
    """VGG-16 from a .safetensors file, a folder with `model.safetensors`, or a hub repository that has it.

    Raises:
        UserError: Nothing there, or weights of another network.
    """
    file = _weights_file(name, revision)
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {file}: {error}") from error
    return VGG16Features(weights, layers or DEFAULT_LAYERS)


def _weights_file(name: str, revision: str | None) -> Path:
    path = Path(find_place(name))
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise UserError(f"{path} has no model.safetensors; put the weights of VGG-16 there")
        return path / "model.safetensors"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "model.safetensors", revision=revision))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot reach {name}, as a file, a folder or on the hub ({reason}); check the name, or download "
            "model.safetensors once where there is a network and give its folder"
        ) from error
