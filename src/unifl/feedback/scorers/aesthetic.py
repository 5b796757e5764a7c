"""The LAION aesthetic predictor: a few linear layers on an embedding of CLIP, blind to the prompt."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.scorers.clip import ClipScorer
from unifl.feedback.scorers.linear_head import linear_head


class Aesthetic(nn.Module):
    """Five linear layers without activations on an embedding of unit length (improved-aesthetic-predictor).

    Args:
        tower: CLIP ViT-L/14, whose text tower is not asked.
        state: Of the published head: `layers.0.weight` and so on, with dropout between.

    Raises:
        UserError: Weights that are missing, surplus, or of another width than the embedding.
    """

    def __init__(self, tower: ClipScorer, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tower = tower
        self.layers = linear_head(state, what="an aesthetic head")
        width = getattr(tower.model.config, "projection_dim", None)
        if width is not None and self.layers[0].in_features != width:
            raise UserError(
                f"the aesthetic head reads {self.layers[0].in_features} numbers and {width} come from the tower; it "
                "was trained on openai/clip-vit-large-patch14"
            )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """One score per picture."""
        return self.layers(self.tower.embed_images(images))[:, 0]
