"""Diffusion-KTO: preference optimisation from likes and dislikes of single pictures (Li et al., arXiv 2404.04465).

    rho = l_ref - l at a drawn time (`surrogate.py`);   h = sigmoid((2 y - 1) beta (rho - KL0))
    L = mean of w_y (1 - h),   KL0 = max(mean rho, 0)

Difference from the published code: KL0 is the mean over all rows of the training step before, 0 in the first, where the
code takes that of the batch at hand; it then depends neither on micro-batches nor on the number of processes.

Data: pictures with a score, above 0 where they are liked. Copies of the backbone: none with LoRA, one with full
fine-tuning. Cost of a step per picture: one evaluation with a graph, one of the reference without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unifl.data.judged import EncodedJudged, Judged
from unifl.errors import UserError
from unifl.losses.preference_single import Utility, kto, kto_baseline
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pair_rows import JudgedRows, check_judged
from unifl.methods.pictures import need_source
from unifl.methods.running import StepMean
from unifl.methods.surrogate import Surrogate, SurrogateConfig
from unifl.models.generator import Generator


@dataclass(kw_only=True)
class KTOConfig(SurrogateConfig):
    """What is compared (`SurrogateConfig`), and the utility of a like; the defaults are those of the code."""

    kind: Literal["kto"] = "kto"
    beta: float = 1000.0
    """Of beta (rho - KL0), with errors that are means."""
    weight_liked: float = 1.0
    """w_y of pictures that were liked."""
    weight_disliked: float = 1.0
    """w_y of the others."""
    utility: Utility = "kahneman_tversky"
    """kahneman_tversky, loss_averse or risk_seeking."""
    source: str = "likes"
    """Pictures with a score each, above 0 where they are liked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "weight_liked", "weight_disliked"):
            if not getattr(self, name) > 0:
                raise UserError(f"kto.{name} is {getattr(self, name)}; it must be above 0")


class KTO:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model.
        config: Settings.
        sources: Data by name; `config.source` must be there.

    Raises:
        UserError: No pictures, pictures of another size than the model's, or no reference.
    """

    def __init__(self, generator: Generator, config: KTOConfig, *, sources: Mapping[str, Source]) -> None:
        need_source(config.source, sources, wanted_by="kto")
        check_judged(
            config.source,
            sources[config.source],
            generator,
            (Judged, EncodedJudged),
            what="pictures with a score",
        )
        self.generator, self.config = generator, config
        self.surrogate = Surrogate(generator, config, needs_reference=True, wanted_by="kto")
        self._baseline = StepMean()
        self.sources: Mapping[str, Source] = {config.source: sources[config.source]}
        self.roles = self.surrogate.roles
        self.updates: tuple[str, ...] = ("student",)
        self.parameters: Mapping[str, list[nn.Parameter]] = {
            "student": list(generator.trainable_parameters().values())
        }
        self.modules: Mapping[str, nn.Module] = {}

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """The loss of one micro-batch; `update` is "student"."""
        config = self.config
        rows = JudgedRows(self.generator, batch.data[config.source], batch.key)
        compared = self.surrogate.compare(rows.latents(), rows.cond(), batch.key)
        liked = rows.score > 0
        self._baseline.enter(batch.key.step)
        mean = compared.rho.detach().new_tensor([self._baseline.value or 0.0])
        baseline = kto_baseline(mean)
        self._baseline.add(compared.rho)
        losses = kto(
            compared.rho,
            liked,
            beta=config.beta,
            baseline=baseline,
            weight_liked=config.weight_liked,
            weight_disliked=config.weight_disliked,
            utility=config.utility,
        )
        gain = (compared.rho.detach() - baseline) * torch.where(liked, 1.0, -1.0)
        right = (gain > 0).float() + (gain == 0).float() / 2
        metrics: dict[str, float | Tensor] = {"accuracy": right.mean(), "baseline": float(baseline)}
        for name, those in (("liked", liked), ("disliked", ~liked)):
            if those.any():
                metrics[f"error/{name}"] = compared.error.detach()[those].mean()
        if compared.drift is not None:
            metrics["drift"] = compared.drift.mean()
        return StepOutput(losses={"preference": losses.mean()}, metrics=metrics)

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step."""
        count = Evaluations(batch_size, trains_text=False)
        if isinstance(self.sources[self.config.source][0], Judged):
            count.add("vae encode")
        self.surrogate.count(count, 1)
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """The baseline."""
        return {"baseline": self._baseline.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._baseline.load_state_dict(state["baseline"])
