"""The noise process and prediction kind of a diffusers scheduler."""

from __future__ import annotations

from typing import Any, cast, get_args

from unifl.errors import UserError
from unifl.process import DiscreteVP, PredictionKind, Spacing, parse_kind, require_defined


def read_scheduler(scheduler: Any) -> tuple[DiscreteVP, PredictionKind]:
    """The process that a model was trained with and what it predicts, from its scheduler's own table.

    Args:
        scheduler: Any diffusers scheduler that is built from betas (DDIM, PNDM, Euler, DPM-Solver, ...).

    Returns:
        The process with T indices, and the prediction kind.

    Raises:
        UserError: A scheduler without such a table (flow matching, EDM), an unknown prediction type, or noise
            prediction at zero terminal SNR.
    """
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


def read_spacing(scheduler: Any) -> tuple[Spacing, int]:
    """How the scheduler chooses its timesteps, and its offset; linspace counts as leading."""
    spacing = scheduler.config.get("timestep_spacing", "leading")
    if spacing not in get_args(Spacing):
        spacing = "leading"
    return cast(Spacing, spacing), int(scheduler.config.get("steps_offset", 0))
