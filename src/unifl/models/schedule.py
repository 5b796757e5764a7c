"""The noise process, prediction kind and timesteps of a diffusers scheduler.

Two kinds of schedule, with the same methods: that of a diffusion model, built from betas, and that of a flow model,
whose t is diffusers' sigma.
"""

from __future__ import annotations

import copy
from typing import Any, cast, get_args

from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.models.denoiser import TRANSFORMER, denoiser_name
from unifl.process import (
    DiscreteVP,
    Flow,
    PredictionKind,
    Spacing,
    index_of_time,
    parse_kind,
    require_defined,
    time_grid,
    time_of_index,
)


class DiffusionSchedule:
    """Of a model with T discrete timesteps: index i of the network sits at t = (i + 1) / T.

    Args:
        scheduler: Any diffusers scheduler that is built from betas (DDIM, PNDM, Euler, DPM-Solver, ...).

    Attributes:
        process: alpha and sigma.
        kind: What the network predicts.
        num_train_timesteps: T.
        spacing: Which timesteps the scheduler visits; linspace counts as leading.
        steps_offset: Its offset for leading spacing.

    Raises:
        UserError: A scheduler without a table (flow matching, EDM), an unknown prediction type, or noise prediction
            at zero terminal SNR.
    """

    def __init__(self, scheduler: Any) -> None:
        self.process, self.kind = _read_betas(scheduler)
        self.num_train_timesteps = self.process.num_train_timesteps
        spacing = scheduler.config.get("timestep_spacing", "leading")
        self.spacing: Spacing = cast(Spacing, spacing) if spacing in get_args(Spacing) else "leading"
        self.steps_offset = int(scheduler.config.get("steps_offset", 0))

    def times(self, num_steps: int, spacing: Spacing) -> Float[Tensor, " points"]:
        """The times of a sampler with `num_steps` evaluations, and 0 at the end; see `unifl.process.time_grid`."""
        return time_grid(num_steps, spacing, self.num_train_timesteps, self.steps_offset)

    def time_of_index(self, index: Tensor) -> Float[Tensor, "..."]:
        """The time t of a timestep 0, ..., T - 1 of training; float32, shape kept."""
        return time_of_index(index, self.num_train_timesteps)

    def shifted(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The time that a draw from (0, 1] becomes: itself."""
        return u

    def timestep(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What the network is told at times t in (0, 1]."""
        return index_of_time(t, self.num_train_timesteps)


class FlowSchedule:
    """Of a rectified flow: x_t = (1 - t) x0 + t eps, and the network is told T t.

    The shift s > 1 of a model for large pictures is no part of the process: it says which t are visited. A uniform u
    becomes t = s u / (1 + (s - 1) u), in training (`time_of_index`) as in sampling (`times`).

    Args:
        scheduler: A FlowMatchEulerDiscreteScheduler with a fixed shift.

    Attributes:
        process: alpha = 1 - t and sigma = t.
        kind: "flow": the network predicts eps - x0.
        num_train_timesteps: T, a unit of time for the network and nothing else.
        spacing: "trailing": the first time is 1.
        steps_offset: 0.
        shift: s.

    Raises:
        UserError: Another scheduler, or one with settings that are not supported.

    Reference:
        Esser et al., arXiv 2403.03206; equation 23 in section 5.3.2 for the shift.
    """

    def __init__(self, scheduler: Any) -> None:
        _require_plain_flow(scheduler)
        self.process = Flow()
        self.kind: PredictionKind = "flow"
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)
        self.spacing: Spacing = "trailing"
        self.steps_offset = 0
        self.shift = float(scheduler.shift)
        self._scheduler = copy.deepcopy(scheduler)  # asking it for times changes its state

    def times(self, num_steps: int, spacing: Spacing) -> Float[Tensor, " points"]:
        """The times that the scheduler visits in `num_steps` evaluations, and 0 at the end; float32, falling.

        Raises:
            UserError: num_steps outside 1..T, or leading spacing.
        """
        if not 1 <= num_steps <= self.num_train_timesteps:
            raise UserError(
                f"num_steps is {num_steps}; choose 1 to {self.num_train_timesteps} (the model's timesteps)"
            )
        self.check_spacing(spacing)
        self._scheduler.set_timesteps(num_steps)
        times: Tensor = self._scheduler.sigmas.clone()
        return times

    def check_spacing(self, spacing: Spacing) -> None:
        """Refuses timesteps that a flow model is not sampled with.

        Raises:
            UserError: Leading spacing.
        """
        if spacing != "trailing":
            raise UserError(
                f"spacing is {spacing!r}, and flow models are sampled from pure noise on; set spacing to trailing"
            )

    def time_of_index(self, index: Tensor) -> Float[Tensor, "..."]:
        """The shifted time of a timestep 0, ..., T - 1 of training; float32, shape kept."""
        return self.shifted(time_of_index(index, self.num_train_timesteps))

    def shifted(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The time that a draw from (0, 1] becomes."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def timestep(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What the network is told at times t in (0, 1]."""
        return t * self.num_train_timesteps


Schedule = DiffusionSchedule | FlowSchedule


def read_schedule(pipeline: Any) -> Schedule:
    """The schedule that the model of a pipeline was trained with.

    Raises:
        UserError: A scheduler that does not go with the model, see the two classes.
    """
    if denoiser_name(pipeline) == TRANSFORMER:
        return FlowSchedule(pipeline.scheduler)
    return DiffusionSchedule(pipeline.scheduler)


def require_diffusion(schedule: Schedule, *, wanted_by: str) -> None:
    """Refuses a flow model where something counts in the timesteps of a diffusion model.

    Args:
        schedule: Of the model.
        wanted_by: What counts in them.

    Raises:
        UserError: A flow model.
    """
    if isinstance(schedule, FlowSchedule):
        raise UserError(
            f"{wanted_by} counts in the timesteps of a diffusion model, and this is a flow model; use a model of the "
            "Stable Diffusion 1, 2 or XL family, or another method (docs/flow-models.md)"
        )


def _read_betas(scheduler: Any) -> tuple[DiscreteVP, PredictionKind]:
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or "beta_schedule" not in scheduler.config:
        raise UserError(
            f"the scheduler {type(scheduler).__name__} is not built from betas, so the noise levels of this model "
            "are unknown; supported are models of the Stable Diffusion 1, 2 and XL families with a DDPM schedule"
        )
    table = table.double().clone()
    if scheduler.config.get("rescale_betas_zero_snr"):
        table[-1] = 0.0  # some schedulers keep 2**-24 there, for the sake of their own sampler
    process = DiscreteVP(table)
    kind = parse_kind(scheduler.config.get("prediction_type", "epsilon"))
    require_defined(kind, process)
    return process, kind


def _require_plain_flow(scheduler: Any) -> None:
    if type(scheduler) is not FlowMatchEulerDiscreteScheduler:
        raise UserError(
            f"the scheduler {type(scheduler).__name__} does not go with a flow model here; set pipeline.scheduler to "
            "the FlowMatchEulerDiscreteScheduler that the model was published with"
        )
    for name, meaning in (
        ("use_dynamic_shifting", "a shift that depends on the size of pictures"),
        ("invert_sigmas", "time that runs from noise at 0 to data at 1"),
        ("stochastic_sampling", "noise that is added at every step"),
    ):
        if scheduler.config.get(name):
            raise UserError(
                f"the scheduler of this model has {name} ({meaning}), which is not supported; set it to false and give "
                "a fixed shift, as Stable Diffusion 3 has"
            )
