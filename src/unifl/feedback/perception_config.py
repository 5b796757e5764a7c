"""Settings of critics by the name or folder of a checkpoint, for `unifl.feedback.open_critic`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unifl.errors import UserError


@dataclass(kw_only=True)
class InstancesConfig:
    """Instances against annotated masks: Mask2Former and MaskFormer, or a SOLO of this package."""

    kind: Literal["instances"] = "instances"
    model: str
    """Hub name or folder; a folder with `trunk.safetensors` and `solo.safetensors` is a SOLO."""
    reading: Literal["dense", "queries"] = "dense"
    """Put queries together per pixel, or pair each instance with one query; a SOLO is dense in any case."""
    num_categories: int | None = None
    """The annotation knows the first so many categories of the model (80 of a panoptic model's 133); null is all."""
    score_threshold: float = 0.5
    """Pseudo annotations keep instances of at least this certainty."""
    size: int | None = None
    """Shorter side in px at which the model looks; null is that of its image processor."""
    checkpointing: bool = False
    """Compute network and loss again during backward, one picture at a time."""
    revision: str | None = None
    """Of a hub repository."""

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.num_categories is not None and self.num_categories < 1:
            raise UserError(f"num_categories is {self.num_categories}; it must be at least 1")
        if not 0 <= self.score_threshold <= 1:
            raise UserError(f"score_threshold is {self.score_threshold}; it must be between 0 and 1")


@dataclass(kw_only=True)
class SemanticConfig:
    """Classes of pixels against a map: any semantic segmenter of transformers."""

    kind: Literal["semantic"] = "semantic"
    model: str
    """Hub name or folder (SegFormer, UperNet, DeepLabV3 on MobileNetV2, DPT, BEiT, ...)."""
    size: int | None = None
    """As for instances."""
    checkpointing: bool = False
    """As for instances."""
    revision: str | None = None
    """Of a hub repository."""

    def __post_init__(self) -> None:
        _check_size(self.size)


@dataclass(kw_only=True)
class DepthConfig:
    """Depth against the real picture's, as the same network sees both."""

    kind: Literal["depth"] = "depth"
    model: str
    """Hub name or folder (DPT, Depth Anything, GLPN, ...)."""
    gradient_weight: float = 0.5
    """Of the differences between neighbouring pixels, see `unifl.losses.depth`."""
    size: int | None = None
    """As for instances."""
    checkpointing: bool = False
    """As for instances."""
    revision: str | None = None
    """Of a hub repository."""

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not self.gradient_weight >= 0:
            raise UserError(f"gradient_weight is {self.gradient_weight}; it must be 0 or more")


@dataclass(kw_only=True)
class EdgesConfig:
    """Edges against the real picture's; no network."""

    kind: Literal["edges"] = "edges"
    sigma: float = 1.0
    """Of the Gaussian blur, in px."""
    threshold: float | None = 0.1
    """Slope of luminance per px that counts half as an edge; null compares slopes themselves."""

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise UserError(f"sigma is {self.sigma}; it must be 0 or more")
        if self.threshold is not None and not self.threshold > 0:
            raise UserError(f"threshold is {self.threshold}; it must be above 0, or null")


@dataclass(kw_only=True)
class StyleConfig:
    """Gram matrices of features against the real picture's."""

    kind: Literal["style"] = "style"
    model: str
    """Hub name or folder; for VGG-16 also a .safetensors file (`timm/vgg16.tv_in1k` on the hub)."""
    network: Literal["vgg16", "backbone"] = "vgg16"
    """VGG-16 in torchvision's layout, or a backbone of transformers (ResNet, ConvNeXt, Swin, DINOv2, ...)."""
    layers: list[str] | None = None
    """Of VGG-16, such as relu3_3 (null: relu1_2, relu2_2, relu3_3, relu4_3); or stages (null: the last four)."""
    size: int | None = None
    """Shorter side in px at which the network looks; null is the picture's own."""
    checkpointing: bool = False
    """As for instances."""
    revision: str | None = None
    """Of a hub repository."""

    def __post_init__(self) -> None:
        _check_size(self.size)


@dataclass(kw_only=True)
class DenoiserConfig:
    """Features of the real picture, as the frozen encoder of the model itself sees both with the same noise on them."""

    kind: Literal["denoiser"] = "denoiser"
    layer: Literal["down_last", "mid", "all_down"] | int = "mid"
    """Of the U-Net: its mid block (the best in arXiv 2401.00110), the last down block, or all that its down path hands
    on. A number is a block of a transformer, from 0."""
    times: tuple[float, float] = (0.1, 0.7)
    """Range of the time t that both are noised to; 1 is noise. Small ones show detail, large ones composition."""
    seed: int = 0
    """Of time and noise, which follow from it and the caption."""
    checkpointing: bool = False
    """As for instances; autoencoder included."""

    def __post_init__(self) -> None:
        first, last = self.times
        if not 0 < first <= last <= 1:
            raise UserError(
                f"times is [{first}, {last}]; it must be a rising range above 0 (the clean picture) up to 1 (noise)"
            )


CriticConfig = InstancesConfig | SemanticConfig | DepthConfig | EdgesConfig | StyleConfig


def _check_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise UserError(f"size is {size}; it must be a number of pixels, or null for the model's own")
