"""What consistency distillation has to settle, with the defaults of latent consistency models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unifl.errors import UserError
from unifl.methods.guiding import GuidingConfig
from unifl.methods.pictures import DecodeConfig
from unifl.methods.proxy import ProxyConfig
from unifl.process import Boundary, SolverConfig
from unifl.sampling import FixedGuidance, NoGuidance, RangeGuidance

MOST_STEPS = 8
"""The most that is reported (arXiv 2310.04378)."""

End = Literal["zero", "uniform", "phases"]


@dataclass(kw_only=True)
class LCDConfig:
    """Consistency distillation; the defaults are LCD's, and the fields say what makes it TCD, PCM, SCott or MLCM."""

    kind: Literal["lcd"] = "lcd"
    grid_steps: int = 50
    """Points N of the solver's grid; one interval is T / N timesteps."""
    guidance: NoGuidance | FixedGuidance | RangeGuidance = field(
        default_factory=lambda: RangeGuidance(low=6.0, high=16.0)
    )
    """w of the teacher's u + w (c - u), drawn per sample. LCM counts from 0, so that its [5, 15] is [6, 16] here."""
    negative_prompt: str | None = None
    """The unconditional half's prompt; null takes what the pipeline takes when it is given none."""
    boundary: Boundary = "lcm"
    """lcm: c_skip and c_out, for jumps to t = 0. ddim: an exact jump to any time (TCD, PCM)."""
    end: End = "zero"
    """Where jumps go: to t = 0; to a time drawn below the target's (TCD); to the end of the phase (PCM)."""
    phases: int = 1
    """Phases M of the grid, for `end: phases`; the model is then sampled by DDIM in M trailing steps."""
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The teacher's step over one interval; substeps 3 and eta 1 are SCott's."""
    target: Literal["ema", "student"] = "ema"
    """Whose jump is the target: the moving average (`training.ema_decay`), or the student itself, without gradient."""
    loss: Literal["huber", "l2"] = "huber"
    """Distance between the two jumps."""
    huber_c: float = 1e-3
    """Of the pseudo-Huber distance."""
    states: Literal["data", "teacher", "student"] = "data"
    """Where the student is asked: real pictures with noise; the teacher's own trajectory from noise (MLCM, no data);
    the student's own pictures with noise (MLCM's second stage)."""
    rollout_steps: int = 4
    """Steps of that trajectory, or of those pictures."""
    source: str = "images"
    """Pictures with captions; prompts are enough where states are not those of data."""
    rewards: GuidingConfig | None = None
    """Rewards of the student's jump to t = 0 (RG-LCD); none when null."""
    proxy: ProxyConfig | None = None
    """A latent proxy that follows an expert, in place of the expert's own gradient; none when null."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Memory of the decoder, for rewards that read pixels, and for the expert."""

    def __post_init__(self) -> None:
        for name in ("grid_steps", "phases", "rollout_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"lcd.{name} is {getattr(self, name)}; it must be at least 1")
        if self.boundary == "lcm" and self.end != "zero":
            raise UserError(
                f"lcd.end is {self.end}, but the boundary of latent consistency models only leads to t = 0; set "
                "lcd.boundary to ddim"
            )
        if self.phases > 1 and self.end != "phases":
            raise UserError(f"lcd.phases is {self.phases}, which takes `end: phases`")
        if self.phases > self.grid_steps:
            raise UserError(
                f"lcd.phases is {self.phases}; choose at most {self.grid_steps}, the points of the grid"
            )
        if not self.huber_c > 0:
            raise UserError(f"lcd.huber_c is {self.huber_c}; it must be above 0")
        if self.proxy is not None and self.states != "data":
            raise UserError(
                f"lcd.states is {self.states}, but a proxy compares with real pictures; set it to data"
            )

    @property
    def sampled_steps(self) -> tuple[int, int]:
        """Fewest and most steps that the model is meant to be sampled with."""
        return (self.phases, self.phases) if self.end == "phases" and self.phases > 1 else (1, MOST_STEPS)

    @property
    def guidance_range(self) -> tuple[float, float]:
        """Smallest and largest scale of the teacher."""
        if isinstance(self.guidance, RangeGuidance):
            return self.guidance.low, self.guidance.high
        scale = self.guidance.scale if isinstance(self.guidance, FixedGuidance) else 1.0
        return scale, scale
