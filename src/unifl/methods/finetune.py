"""Plain fine-tuning: the denoising loss on pictures with captions (Ho et al., DDPM, arXiv 2006.11239, eq. 14).

    L = E |s_theta(alpha_t x0 + sigma_t eps, t, c) - target|^2,    t uniform over the training schedule

The target is what the model predicts: eps, v, x0 or, of a flow, the velocity eps - x0. The schedule of a flow is
shifted; where its authors draw t from a logit-normal density (Esser et al., arXiv 2403.03206), all its timesteps count
alike here. It is what one does without feedback, and so what perceptual feedback is compared with on the same pictures
(UniFL, arXiv 2404.05595, table 2).

Data: pictures with captions. Copies of the backbone: none. Cost of a step: one evaluation with a graph and one encode
per picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from unifl.methods.anchors import AnchorConfig, denoising_anchor
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import Rows, check_pictures, need_source
from unifl.models.generator import Generator


@dataclass(kw_only=True)
class FineTuneConfig:
    """Plain fine-tuning has nothing to settle but its data."""

    kind: Literal["finetune"] = "finetune"
    source: str = "images"
    """Pictures with captions."""


class FineTune:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model.
        config: Settings.
        sources: Data by name; `config.source` must be there.

    Raises:
        UserError: A source that is missing or empty, or pictures of another size than the model's.
    """

    def __init__(
        self, generator: Generator, config: FineTuneConfig, *, sources: Mapping[str, Source]
    ) -> None:
        need_source(config.source, sources, wanted_by="finetune")
        check_pictures(config.source, sources[config.source], generator.image_size)
        self.generator = generator
        self.config = config
        self.sources: Mapping[str, Source] = {config.source: sources[config.source]}
        self.roles: tuple[str, ...] = ()
        self.updates: tuple[str, ...] = ("student",)
        self.parameters: Mapping[str, list[nn.Parameter]] = {
            "student": list(generator.trainable_parameters().values())
        }
        self.modules: Mapping[str, nn.Module] = {}

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """The loss of one micro-batch; `update` is "student"."""
        rows = Rows(self.generator, batch.data[self.config.source])
        loss = denoising_anchor(self.generator, rows, batch.key)
        return StepOutput(losses={"denoising": loss})

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step."""
        count = Evaluations(batch_size, trains_text=self.generator.trains_text)
        count.anchors(AnchorConfig(denoising_weight=1.0, source=self.config.source), [])
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept between steps."""
