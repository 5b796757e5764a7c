"""Reward-weighted regression: fine-tuning on scored pictures, the better ones more (Flow-RWR, arXiv 2501.13918).

    L = mean of  exp(R / temperature) l      with l the denoising error at a drawn time (`surrogate.py`)

Scores are taken relative to the mean and deviation of all of them, and weights are divided by their mean, so that
neither the scale of a reward nor its offset changes the size of a step.

Data: pictures with a score. Copies of the backbone: none. Cost of a step: one evaluation with a graph per picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from unifl.data.judged import EncodedJudged, Judged
from unifl.errors import UserError
from unifl.losses.preference_single import reward_weights
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pair_rows import JudgedRows, check_judged
from unifl.methods.pictures import need_source
from unifl.methods.surrogate import Surrogate, SurrogateConfig
from unifl.models.generator import Generator


@dataclass(kw_only=True)
class RewardWeightedConfig(SurrogateConfig):
    """What is regressed on (`SurrogateConfig`), and how much more the better ones count."""

    kind: Literal["reward_weighted"] = "reward_weighted"
    temperature: float = 1.0
    """In standard deviations of the scores."""
    source: str = "scored"
    """Pictures with a score each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"reward_weighted.temperature is {self.temperature}; it must be above 0")


class RewardWeighted:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model.
        config: Settings.
        sources: Data by name; `config.source` must be there. Its `scores` are all scores; without that, all rows are
            read once.

    Raises:
        UserError: No pictures, pictures of another size than the model's, or scores that are all the same.
    """

    def __init__(
        self, generator: Generator, config: RewardWeightedConfig, *, sources: Mapping[str, Source]
    ) -> None:
        need_source(config.source, sources, wanted_by="reward_weighted")
        source = sources[config.source]
        check_judged(config.source, source, generator, (Judged, EncodedJudged), what="pictures with a score")
        self.generator, self.config = generator, config
        self.surrogate = Surrogate(generator, config, needs_reference=False, wanted_by="reward_weighted")
        scores = torch.tensor(_scores(source), dtype=torch.float64)
        deviation = float(scores.std(correction=0))
        if not deviation > 0:
            raise UserError(
                f"all scores of {config.source!r} are {float(scores[0]):g}; weights need scores that differ"
            )
        self._mean, self._deviation = float(scores.mean()), deviation
        self._norm = float(self._weights(scores).mean())
        self.sources: Mapping[str, Source] = {config.source: source}
        self.roles = self.surrogate.roles
        self.updates: tuple[str, ...] = ("student",)
        self.parameters: Mapping[str, list[nn.Parameter]] = {
            "student": list(generator.trainable_parameters().values())
        }
        self.modules: Mapping[str, nn.Module] = {}

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """The loss of one micro-batch; `update` is "student"."""
        rows = JudgedRows(self.generator, batch.data[self.config.source], batch.key)
        error = self.surrogate.compare(rows.latents(), rows.cond(), batch.key).error
        weight = (self._weights(rows.score) / self._norm).to(error)
        return StepOutput(
            losses={"weighted": (weight * error).mean()},
            metrics={"error": error.detach().mean(), "weight/largest": weight.max()},
        )

    def _weights(self, scores: torch.Tensor) -> torch.Tensor:
        standard = (scores.double() - self._mean) / self._deviation
        return reward_weights(standard, temperature=self.config.temperature, normalise=False)

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step."""
        count = Evaluations(batch_size, trains_text=False)
        if isinstance(self.sources[self.config.source][0], Judged):
            count.add("vae encode")
        self.surrogate.count(count, 1)
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept between steps."""


def _scores(source: Source) -> list[float]:
    known = getattr(source, "scores", None)
    if known is not None:
        return [float(score) for score in known]
    return [float(source[row].score) for row in range(len(source))]
