"""Win rates and differences between trained models, with intervals over prompts and training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from unifl.errors import UserError
from unifl.metrics.intervals import Interval, seed_prompt_interval
from unifl.metrics.paired import Paired, paired_over_seeds
from unifl.reproduce.parts import Piece


@dataclass(frozen=True)
class Table:
    """Scores of all pieces: {(training, seed): piece}."""

    pieces: Mapping[tuple[str, int], Piece]

    def seeds(self, *trainings: str) -> list[int]:
        """Seeds that all of these trainings have been judged for.

        Raises:
            UserError: There is none.
        """
        common = [seed for name, seed in self.pieces if name == trainings[0]]
        common = [seed for seed in sorted(common) if all((name, seed) in self.pieces for name in trainings)]
        if not common:
            raise UserError(
                f"nothing was measured yet of {' and '.join(trainings)}; run the reproduction to its end"
            )
        return common

    def values(
        self, training: str, metric: str, look: str = "end", *, seeds: Sequence[int] | None = None
    ) -> Float[np.ndarray, "t p"]:
        """Scores (training seeds, prompts) of one metric; all seeds by default."""
        chosen = self.seeds(training) if seeds is None else seeds
        return np.stack([self.pieces[training, seed].looks[look].values[metric] for seed in chosen])

    def wins(
        self, a: str, b: str, *, look_a: str = "end", look_b: str = "end", metric: str = "overall"
    ) -> Paired:
        """How often the pictures of a beat those of b on the same prompt and noise."""
        seeds = self.seeds(a, b)
        return paired_over_seeds(
            self.values(a, metric, look_a, seeds=seeds), self.values(b, metric, look_b, seeds=seeds)
        )

    def mean(self, training: str, metric: str, look: str = "end") -> Interval:
        """The mean of a metric."""
        return seed_prompt_interval(self.values(training, metric, look))

    def change(self, metric: str, a: str, b: str, *, look_a: str = "end", look_b: str = "end") -> Interval:
        """The change a - b of one metric, paired."""
        seeds = self.seeds(a, b)
        return seed_prompt_interval(
            self.values(a, metric, look_a, seeds=seeds) - self.values(b, metric, look_b, seeds=seeds)
        )
