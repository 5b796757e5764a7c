"""Offline preference optimisation on pairs of pictures, in the latent space or in the U-Net's own embedding space.

    l = distance of the student's prediction to the truth at a drawn time, one per picture; rho = l_ref - l
    L = mean over pairs of  strength * head(rho_w - rho_l)  (+ terms of the objective)

Diffusion-DPO (arXiv 2311.12908) with its relatives (`objectives.py`) in the space `kind: latent`, NCP-DPO, NCP-CPO and
NCP-SFT (arXiv 2406.17636) in `kind: ncp`, InPO (arXiv 2503.18454) with `states: {kind: inverted}`, Flow-DPO (arXiv
2501.13918) on flow models, and PPD (arXiv 2501.06655) with the embeddings of the users who chose.

Differences from the published code: draws are keyed; the time of a pair is drawn per pair; ties and strengths of
labels are used where asked for. Logged beside the loss: how often the winner leads (implicit accuracy), both errors
apart (both rising is the known failure), the logits by time, and the drift from the reference.

Data: pairs. Copies of the backbone: none with LoRA; with full fine-tuning one, where there is a reference or the NCP
space. Cost of a step per pair, latent space: 2 evaluations with a graph, 2 of the reference without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unifl.data.pairs import EncodedPair, Pair
from unifl.data.users import UserEmbeddings
from unifl.errors import UserError
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.logit_scale import LogitScale
from unifl.methods.ncp import NO_PLACES
from unifl.methods.objectives import (
    CPO,
    DPO,
    IPO,
    PSO,
    SFT,
    Hinge,
    MaPO,
    beta_of,
    needs_reference,
    preference_losses,
)
from unifl.methods.pair_rows import PairRows, check_judged
from unifl.methods.pair_users import check_users
from unifl.methods.pictures import need_source
from unifl.methods.surrogate import Compared, Surrogate, SurrogateConfig
from unifl.models.generator import Generator


@dataclass(kw_only=True)
class PreferenceConfig(SurrogateConfig):
    """What is compared (`SurrogateConfig`), and what shall come of it."""

    kind: Literal["preference"] = "preference"
    objective: DPO | IPO | Hinge | CPO | SFT | MaPO | PSO = field(default_factory=DPO)
    """`kind: dpo`, ipo, hinge, cpo, sft, mapo or pso, with its settings."""
    weighting: Literal["none", "strength"] = "none"
    """strength multiplies the loss of a pair by the strength of its label."""
    caption_dropout: float = 0.0
    """Probability that a pair is seen without its caption."""
    user_dropout: float = 0.0
    """Probability that a pair is seen without its user, for models that are told for whom they draw."""
    source: str = "pairs"
    """Pairs of pictures of which one was preferred."""


class Preference:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model.
        config: Settings.
        sources: Data by name; `config.source` must be there.
        users: Embeddings of the users who chose, for a model with a user adapter (`UserTraining`).

    Raises:
        UserError: No pairs, pairs of another size than the model's, an objective that needs a reference and has none,
            masks in a space without places, a user adapter without users or the other way round, or users without an
            embedding (see `check_users`).
    """

    def __init__(
        self,
        generator: Generator,
        config: PreferenceConfig,
        *,
        sources: Mapping[str, Source],
        users: UserEmbeddings | None = None,
    ) -> None:
        need_source(config.source, sources, wanted_by="preference")
        check_judged(
            config.source, sources[config.source], generator, (Pair, EncodedPair), what="preference pairs"
        )
        check_users(config.source, sources[config.source], generator, users, dropout=config.user_dropout)
        objective = config.objective
        self.generator, self.config, self.users = generator, config, users
        self.surrogate = Surrogate(
            generator, config, needs_reference=needs_reference(objective), wanted_by=objective.kind
        )
        if not self.surrogate.space.has_places and getattr(sources[config.source], "has_masks", False):
            raise UserError(f"the source {config.source!r} has masks: {NO_PLACES}")
        self._scale = None if (beta := beta_of(objective)) is None else LogitScale(*beta)
        self._losers = not isinstance(objective, SFT)
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
        rows = PairRows(
            self.generator,
            batch.data[config.source],
            batch.key,
            caption_dropout=config.caption_dropout,
        )
        _check_ties(rows.tie, config)
        compared = self.surrogate.compare(
            rows.latents(losers=self._losers),
            rows.cond(copies=1 + self._losers, users=self.users, user_dropout=config.user_dropout),
            batch.key,
            mask=rows.mask(losers=self._losers),
        )
        weight = rows.strength if config.weighting == "strength" else torch.ones_like(rows.strength)
        if not self._losers:
            return StepOutput(
                losses={"winner": (weight * compared.error).mean()},
                metrics={"error/winner": compared.error.detach().mean()},
            )
        return self._on_pairs(compared, rows.tie, weight, batch.key.step)

    def _on_pairs(
        self, compared: Compared, tie: Bool[Tensor, " b"], weight: Float[Tensor, " b"], step: int
    ) -> StepOutput:
        pairs = len(tie)
        win, lose = compared.part(slice(None, pairs)), compared.part(slice(pairs, None))
        scale = self._scale
        if scale is not None:
            scale.enter(step)
        beta = 1.0 if scale is None else scale.beta
        found = preference_losses(self.config.objective, win, lose, tie, beta)
        if scale is not None:
            found["preference"] = found["preference"] / scale.relative
        metrics = _diagnostics(win, lose, tie)
        if scale is not None:
            delta = win.rho - lose.rho
            metrics |= scale.observe(delta, beta / 2 * delta, win.t)
        return StepOutput(
            losses={name: (weight * loss).mean() for name, loss in found.items()}, metrics=metrics
        )

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step."""
        count = Evaluations(batch_size, trains_text=False)
        copies = 1 + self._losers
        if isinstance(self.sources[self.config.source][0], Pair):
            count.add("vae encode", copies)
        self.surrogate.count(count, copies)
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Beta and the logits' statistics."""
        return {} if self._scale is None else {"scale": self._scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if self._scale is not None:
            self._scale.load_state_dict(state["scale"])


def _check_ties(tie: Bool[Tensor, " b"], config: PreferenceConfig) -> None:
    takes = isinstance(config.objective, DPO) and config.objective.ties is not None
    if not takes and bool(tie.any()):
        raise UserError(
            f"the source {config.source!r} holds ties, which {config.objective.kind} has no use for; leave them out "
            "(ties: drop in the data), or set objective.ties of dpo to a theta above 1"
        )


def _diagnostics(win: Compared, lose: Compared, tie: Bool[Tensor, " b"]) -> dict[str, float | Tensor]:
    """Implicit accuracy and both errors, of the student and of the reference."""
    delta = (win.rho - lose.rho).detach()
    metrics: dict[str, float | Tensor] = {
        "error/winner": win.error.detach().mean(),
        "error/loser": lose.error.detach().mean(),
    }
    decided = delta[~tie]
    if len(decided):
        metrics["accuracy"] = ((decided > 0).float() + (decided == 0).float() / 2).mean()
    if win.reference is not None and lose.reference is not None:
        metrics["error/winner over reference"] = (win.error.detach() - win.reference).mean()
        metrics["error/loser over reference"] = (lose.error.detach() - lose.reference).mean()
    if win.drift is not None and lose.drift is not None:
        metrics["drift"] = torch.cat([win.drift, lose.drift]).mean()
    return metrics
