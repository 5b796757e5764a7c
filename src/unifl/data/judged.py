"""Pictures that were judged one by one: liked or not, or with a score."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from unifl.data.encoded_sample import EncodedSample


@dataclass(frozen=True)
class Judged:
    """A picture of a prompt with its score.

    Attributes:
        prompt: What it shows.
        image: In [0, 1].
        score: Higher is better; 1.0 is liked and 0.0 is not where people only said that.
    """

    prompt: str
    image: Float[Tensor, "3 h w"]
    score: float


@dataclass(frozen=True)
class EncodedJudged:
    """A `Judged` whose picture was encoded once.

    Attributes:
        sample: Row of the cache, with its prompt.
        score: See `Judged`.
    """

    sample: EncodedSample
    score: float

    @property
    def prompt(self) -> str:
        """What the picture shows."""
        return self.sample.prompt
