"""One row of a cache of encoded pictures; apart from `unifl.data.encoded`, so that reading it costs no models."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class EncodedSample:
    """One row of a cache, in float32.

    Attributes:
        prompt: Caption.
        mean: Of the scaled latents.
        std: Standard deviation of the scaled latents.
        embeds: Of the prompt, where they are kept.
        pooled: The pooled embedding (SDXL), where embeddings are kept.
        time_ids: SDXL's six numbers (see `unifl.data.buckets`), where they are kept.
    """

    prompt: str
    mean: Float[Tensor, "c h w"]
    std: Float[Tensor, "c h w"]
    embeds: Float[Tensor, "l d"] | None = None
    pooled: Float[Tensor, " p"] | None = None
    time_ids: Float[Tensor, " 6"] | None = None
