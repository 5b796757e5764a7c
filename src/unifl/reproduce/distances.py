"""Frechet distances of drawn pictures to real ones, all training seeds together, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from unifl.metrics.frechet import frechet_distance, frechet_replicates
from unifl.metrics.intervals import bootstrap_counts, centred_interval
from unifl.reproduce.figures import Figure, Table

_RESAMPLES = 200
_REAL = "real"


@dataclass(frozen=True)
class Distance:
    """A squared distance, or a sum of such: its value, and that of resamples of prompts.

    Attributes:
        value: Of all pictures.
        replicates: Of the resamples, which all models and training seeds share, so that differences are paired.
        n: Pictures on each side.
    """

    value: float
    replicates: Float[np.ndarray, " r"]
    n: int

    def __sub__(self, other: Distance) -> Distance:
        return Distance(self.value - other.value, self.replicates - other.replicates, self.n)

    def __mul__(self, factor: float) -> Distance:
        return Distance(factor * self.value, factor * self.replicates, self.n)

    def __add__(self, other: Distance) -> Distance:
        return self - other * -1.0

    @property
    def figure(self) -> Figure:
        """With its interval; there is no value for each training seed, as one seed has too few pictures."""
        found = centred_interval(self.value, self.replicates, n=self.n)
        return Figure(found.value, found.low, found.high, self.n, seeds=())


def distance(table: Table, training: str, look: str, *, seeds: Sequence[int]) -> Distance:
    """From real held-out scenes to what a training draws, in the features of the judge.

    Args:
        table: With pieces of the training and of "real".
        training: Which.
        look: Which of its looks.
        seeds: Training seeds whose pictures are put together; the same for all distances that are compared.
    """
    own, real = _features(table, training, look, seeds), _features(table, _REAL, _REAL, seeds)
    counts = np.tile(bootstrap_counts(len(own) // len(seeds), resamples=_RESAMPLES), (1, len(seeds)))
    return Distance(frechet_distance(own, real), frechet_replicates(own, real, counts), len(own))


def _features(table: Table, training: str, look: str, seeds: Sequence[int]) -> Float[np.ndarray, "n k"]:
    parts = [table.pieces[training, seed].looks[look].features for seed in seeds]
    assert all(part is not None for part in parts)
    return np.concatenate([part for part in parts if part is not None])
