"""Objectives on pairs: what a likelihood difference has to become.

With l the errors of `surrogate.py`, rho = l_ref - l (or -l where there is no reference) and delta = rho_w - rho_l:

    DPO     -log sigmoid(beta / 2 delta)        Diffusion-DPO (arXiv 2311.12908), Flow-DPO (arXiv 2501.13918) and,
                                                in the NCP space, NCP-DPO (arXiv 2406.17636)
    IPO     (delta - 1 / (2 beta))^2            Azar et al., arXiv 2310.12036
    hinge   relu(1 - beta / 2 delta)            SLiC-HF, arXiv 2305.10425
    CPO     -log sigmoid(beta / 2 delta) + weight l_w
                                                no reference (arXiv 2401.08417; arXiv 2406.17636, eq. 11)
    SFT     l_w                                 winners alone
    MaPO    -beta log sigmoid(T (phi_w - phi_l)) + l_w
                                                no reference (arXiv 2406.06424)
    PSO     -log sigmoid(beta ((l_w,ref - k l_l,ref) - (l_w - k l_l))) + prior l_l
                                                offline, for students of few steps (arXiv 2410.03190)

docs/preference-objectives.md has the conventions of scale and what each test holds them to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.preference import (
    beta_over_time,
    hinge,
    ipo,
    logistic,
    logistic_with_ties,
)
from unifl.losses.preference_margin import mapo, pso, pso_hinge
from unifl.methods.logit_scale import Beta, LogitConfig
from unifl.methods.surrogate import Compared


@dataclass(kw_only=True)
class DPO:
    """Direct preference optimisation."""

    kind: Literal["dpo"] = "dpo"
    beta: Beta = 5000.0
    """Of logit = beta / 2 delta, with errors that are means; "auto" settles it in the first steps."""
    auto: LogitConfig = field(default_factory=LogitConfig)
    """What "auto" aims at."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong (conservative DPO)."""
    margin: float = 0.0
    """Logit by which a winner has to lead."""
    ties: float | None = None
    """theta above 1 of the Bradley-Terry model with ties; null refuses pairs that nobody won."""
    over_time: Literal["constant", "quadratic"] = "constant"
    """quadratic multiplies beta by (1 - t)^2, as the theory of Flow-DPO has it; constant is what worked there."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 0.5)")
        if self.ties is not None and not self.ties > 1:
            raise UserError(f"ties is {self.ties}; theta must be above 1, or null")
        if self.ties is not None and (self.label_smoothing or self.margin):
            raise UserError("ties has a model of errors of its own; set label_smoothing and margin to 0")

    def losses(
        self, delta: Float[Tensor, " b"], beta: float, t: Float[Tensor, " b"], tie: Bool[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """One loss per pair."""
        logits = beta_over_time(beta, t, self.over_time) / 2 * delta
        if self.ties is not None:
            return logistic_with_ties(logits, tie, self.ties)
        return logistic(logits, label_smoothing=self.label_smoothing, margin=self.margin)


@dataclass(kw_only=True)
class IPO:
    """Identity preference optimisation."""

    kind: Literal["ipo"] = "ipo"
    beta: float = 5000.0
    """delta is pulled to 1 / (2 beta), as in diffusers' script."""


@dataclass(kw_only=True)
class Hinge:
    """The hinge of SLiC."""

    kind: Literal["hinge"] = "hinge"
    beta: Beta = 5000.0
    """Of logit = beta / 2 delta."""
    auto: LogitConfig = field(default_factory=LogitConfig)
    """What "auto" aims at."""


@dataclass(kw_only=True)
class CPO:
    """Contrastive preference optimisation: no reference, held by the winners' own loss."""

    kind: Literal["cpo"] = "cpo"
    beta: Beta = 1000.0
    """Of logit = beta / 2 delta; differs from DPO's, as delta is no difference to a reference."""
    auto: LogitConfig = field(default_factory=LogitConfig)
    """What "auto" aims at."""
    winner_weight: float = 1.0
    """lambda of the winners' loss; the gradient of the logistic term is beta / 4 at the start, auto.initial / 4 with
    "auto"."""


@dataclass(kw_only=True)
class SFT:
    """Fine-tuning on winners."""

    kind: Literal["sft"] = "sft"


@dataclass(kw_only=True)
class MaPO:
    """Margin-aware preference optimisation."""

    kind: Literal["mapo"] = "mapo"
    beta: float = 0.1
    """Weight of the margin beside the winners' loss."""
    scale: float = 0.5
    """s of phi(l) = s l / (exp(s l) - 1)."""
    horizon: float = 1000.0
    """T, which multiplies the margin."""


@dataclass(kw_only=True)
class PSO:
    """Pairwise sample optimisation, offline: winners are data, losers the student's own samples."""

    kind: Literal["pso"] = "pso"
    beta: float = 50.0
    """Of the logit."""
    negative_weight: float = 1.0
    """k of the losers."""
    prior_weight: float = 0.0
    """Of the losers' own loss, which holds the student near its samples."""
    without_reference: bool = False
    """The hinge relu(1 + beta (l_w - k l_l)) in its place, for few pictures of one subject."""


Objective = DPO | IPO | Hinge | CPO | SFT | MaPO | PSO
"""Told apart by `kind`."""


def needs_reference(objective: Objective) -> bool:
    """Whether an objective compares the student with a reference."""
    if isinstance(objective, PSO):
        return not objective.without_reference
    return isinstance(objective, DPO | IPO | Hinge)


def beta_of(objective: Objective) -> tuple[Beta, LogitConfig] | None:
    """Beta of an objective that has logits beta / 2 delta; None where there is none."""
    if isinstance(objective, DPO | Hinge | CPO):
        return objective.beta, objective.auto
    return None


def preference_losses(
    objective: Objective, win: Compared, lose: Compared, tie: Bool[Tensor, " b"], beta: float
) -> dict[str, Float[Tensor, " b"]]:
    """The losses of b pairs by name, weighted.

    Args:
        objective: Settings.
        win: Winners.
        lose: Losers.
        tie: Pairs that nobody won.
        beta: Of objectives that have logits.
    """
    delta = win.rho - lose.rho
    if isinstance(objective, DPO):
        return {"preference": objective.losses(delta, beta, win.t, tie)}
    if isinstance(objective, IPO):
        return {"preference": ipo(delta, objective.beta)}
    if isinstance(objective, Hinge):
        return {"preference": hinge(beta / 2 * delta)}
    if isinstance(objective, CPO):
        return {"preference": logistic(beta / 2 * delta), "winner": objective.winner_weight * win.error}
    if isinstance(objective, MaPO):
        margin = mapo(
            win.error, lose.error, beta=objective.beta, scale=objective.scale, horizon=objective.horizon
        )
        return {"preference": margin, "winner": win.error}
    assert isinstance(objective, PSO)
    return _pso_losses(objective, win, lose)


def _pso_losses(objective: PSO, win: Compared, lose: Compared) -> dict[str, Float[Tensor, " b"]]:
    how = {"beta": objective.beta, "negative_weight": objective.negative_weight}
    if win.reference is None or lose.reference is None:
        losses = {"preference": pso_hinge(win.error, lose.error, **how)}
    else:
        losses = {"preference": pso(win.error, lose.error, win.reference, lose.reference, **how)}
    if objective.prior_weight > 0:
        losses["loser"] = objective.prior_weight * lose.error
    return losses
