"""DINOv2 and CLIP as networks from pictures to features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from unifl.feedback.pretrained import find_place
from unifl.feedback.scorers.files import load_two_towers
from unifl.feedback.scorers.looking import Looking, looking_of


class Dinov2Features(nn.Module):
    """The class token behind the last norm.

    Args:
        model: `Dinov2Model` of transformers.
        looking: How it is shown pictures.
    """

    def __init__(self, model: nn.Module, looking: Looking) -> None:
        super().__init__()
        self.model, self.looking = model, looking

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features of pictures in [0, 1]."""
        found: Tensor = self.model(pixel_values=self.looking(images)).pooler_output
        return found


class ClipFeatures(nn.Module):
    """Embeddings of pictures, of unit length.

    Args:
        model: `CLIPModel` of transformers, whose text tower is not asked.
        looking: How it is shown pictures.
    """

    def __init__(self, model: nn.Module, looking: Looking) -> None:
        super().__init__()
        self.model, self.looking = model, looking

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features of pictures in [0, 1]."""
        found: Any = self.model.get_image_features(pixel_values=self.looking(images))  # type: ignore[operator]
        found = found if isinstance(found, Tensor) else found.pooler_output
        return F.normalize(found, dim=-1)


def dinov2_network(weights: str, revision: str | None) -> nn.Module:
    """DINOv2 of a folder or of the hub, at the size of its own crop.

    Raises:
        UserError: Nothing there, or weights that are missing or surplus.
    """
    model = load_two_towers(weights, "Dinov2Model", revision)
    looking = looking_of(_settings(weights, revision), model=weights, fit="squash")
    if (looking.mean, looking.std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise UserError(
            f"the image processor of {weights} normalises by mean {looking.mean} and std {looking.std}, and DINOv2 was "
            f"trained with {IMAGENET_MEAN} and {IMAGENET_STD}; repair its preprocessor_config.json"
        )
    return Dinov2Features(model, looking)


def clip_network(weights: str, revision: str | None) -> nn.Module:
    """CLIP of a folder or of the hub.

    Raises:
        UserError: Nothing there, or weights that are missing or surplus.
    """
    model = load_two_towers(weights, "CLIPModel", revision)
    return ClipFeatures(model, looking_of(_settings(weights, revision), model=weights))


def _settings(name: str, revision: str | None) -> dict[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(
            find_place(name), revision=revision
        )[0]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} has no preprocessor_config.json that can be read, which says how it looks; save the image "
            f"processor beside the model ({str(error).strip().splitlines()[0]})"
        ) from error
    return found
