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


class Distances:
    """From real held-out scenes to what trainings draw, in the features of the judge; each is computed once.

    Args:
        table: With pieces of the trainings and of "real".
        seeds: Training seeds whose pictures are put together; the same for all distances that are compared.
    """

    def __init__(self, table: Table, seeds: Sequence[int]) -> None:
        self._table, self._seeds = table, seeds
        self._found: dict[tuple[str, str], Distance] = {}

    def __call__(self, training: str, look: str) -> Distance:
        """Of one look of a training."""
        if (training, look) not in self._found:
            self._found[training, look] = self._measured(training, look)
        return self._found[training, look]

    def _measured(self, training: str, look: str) -> Distance:
        own, real = self._features(training, look), self._features(_REAL, _REAL)
        prompts = len(own) // len(self._seeds)
        counts = np.tile(bootstrap_counts(prompts, resamples=_RESAMPLES), (1, len(self._seeds)))
        return Distance(
            frechet_distance(own, real, few=True), frechet_replicates(own, real, counts), len(own)
        )

    def _features(self, training: str, look: str) -> Float[np.ndarray, "n k"]:
        parts = [self._table.pieces[training, seed].looks[look].features for seed in self._seeds]
        assert all(part is not None for part in parts)
        return np.concatenate([part for part in parts if part is not None])
