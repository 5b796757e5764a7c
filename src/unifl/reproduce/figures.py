"""Win rates and differences between trained models, with intervals over prompts and training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from unifl.errors import UserError
from unifl.metrics.intervals import Interval, seed_prompt_interval
from unifl.metrics.paired import outcomes, paired_over_seeds
from unifl.reproduce.parts import Piece


@dataclass(frozen=True)
class Figure(Interval):
    """A value with its interval over training seeds and prompts, and the value of each training seed."""

    seeds: tuple[float, ...]


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
    ) -> Figure:
        """How often the pictures of a beat those of b on the same prompt and noise; a tie counts half."""
        seeds = self.seeds(a, b)
        ours, theirs = (
            self.values(name, metric, look, seeds=seeds) for name, look in ((a, look_a), (b, look_b))
        )
        return _figure(paired_over_seeds(ours, theirs).rate, outcomes(ours, theirs))

    def mean(self, training: str, metric: str, look: str = "end") -> Figure:
        """The mean of a metric."""
        values = self.values(training, metric, look)
        return figure_of(values)

    def change(
        self,
        metric: str,
        a: str,
        b: str,
        *,
        look_a: str = "end",
        look_b: str = "end",
        prompts: Bool[np.ndarray, " p"] | None = None,
    ) -> Figure:
        """The change a - b of one metric, paired; of some of the prompts, or of all."""
        seeds = self.seeds(a, b)
        change = self.values(a, metric, look_a, seeds=seeds) - self.values(b, metric, look_b, seeds=seeds)
        if prompts is not None:
            change = change[:, prompts]
        return figure_of(change)

    def size(self, *trainings: str, look: str = "end") -> dict[str, int]:
        """Training seeds that all of these have, and prompt-and-noise pairs over all of them."""
        seeds = self.seeds(*trainings)
        return {"seeds": len(seeds), "pairs": self.values(trainings[0], "overall", look, seeds=seeds).size}


def figure_of(values: Float[np.ndarray, "t p"]) -> Figure:
    """The mean of values by training seed and prompt, with its interval over both."""
    return _figure(seed_prompt_interval(values), values)


def _figure(interval: Interval, values: Float[np.ndarray, "t p"]) -> Figure:
    return Figure(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        seeds=tuple(float(mean) for mean in np.nanmean(values, axis=1)),
    )


def interval_text(figure: Interval, unit: str = "") -> str:
    """Read as 52.1% [50.3%, 54.0%], or as +0.021 [+0.012, +0.030]."""
    if unit == "%":
        return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}]"
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"
