"""The denoising surrogate of a likelihood ratio, which all offline preference methods share.

    x_t = alpha x0 + sigma eps;   l = distance of what the network says at x_t to the truth;   s = -l
    rho = s_student - s_reference,   or  -l_student  without a reference

l is the mean over all dimensions of a sample in its space (`methods.spaces`), so that a beta carries over between
resolutions. Winner and loser of a pair have the same t and the same eps (Wallace et al., Diffusion-DPO, arXiv
2311.12908, section 4; the code that accompanies it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.anchor import distance_to_start
from unifl.methods.counting import Evaluations
from unifl.methods.spaces import LatentSpaceConfig, NCPConfig, make_space
from unifl.methods.states import InvertedStates, NoisedStates, inverted
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.models.roles import STUDENT
from unifl.randomness import Key

_ROLES = {"start": "reference", "ema": "ema", "none": None}


@dataclass(kw_only=True)
class SurrogateConfig:
    """Where and in which space student and reference are compared."""

    space: LatentSpaceConfig | NCPConfig = field(default_factory=LatentSpaceConfig)
    """`kind: latent`, or `kind: ncp` for the embedding space of the U-Net's frozen encoder."""
    states: NoisedStates | InvertedStates = field(default_factory=NoisedStates)
    """`kind: noised`, or `kind: inverted` for states that the student's own inversion gives (InPO)."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How t is drawn; logit_normal is what flow models are trained with (Esser et al., arXiv 2403.03206, eq. 19). Of a
    flow model with a shift, what is drawn is shifted, as in its training and sampling (eq. 23)."""
    grid_steps: int | None = None
    """Times of a sampler of so many steps alone, for students of few steps; null is all of the training schedule."""
    reference: Literal["start", "ema", "none"] = "start"
    """What the student is compared with: what it started from (adapters off, the LoRA that it began with, or a copy),
    its own moving average (`training.ema_decay`), or nothing. Objectives without a reference take no notice."""

    def __post_init__(self) -> None:
        if self.grid_steps is not None and self.grid_steps < 1:
            raise UserError(f"grid_steps is {self.grid_steps}; it must be at least 1, or null for all times")
        if self.grid_steps is not None and self.times != "uniform":
            raise UserError("grid_steps draws from a grid, and times is logit_normal; give one of the two")


@dataclass(frozen=True)
class Compared:
    """What student and reference say about n samples.

    Attributes:
        t: Times (n,).
        error: The student's l, with graph (n,).
        reference: The reference's l (n,); None without one.
        drift: Mean squared difference of the two raw outputs (n,); None without a reference.
    """

    t: Float[Tensor, " n"]
    error: Float[Tensor, " n"]
    reference: Float[Tensor, " n"] | None = None
    drift: Float[Tensor, " n"] | None = None

    @property
    def rho(self) -> Float[Tensor, " n"]:
        """The likelihood ratio's surrogate, or the student's own term where there is no reference."""
        return -self.error if self.reference is None else self.reference - self.error

    def part(self, rows: slice) -> Compared:
        """Some of the samples."""
        return Compared(
            self.t[rows],
            self.error[rows],
            None if self.reference is None else self.reference[rows],
            None if self.drift is None else self.drift[rows],
        )


class Surrogate:
    """Compares student and reference at drawn times.

    Args:
        generator: The model.
        config: Settings.
        needs_reference: Whether the objective compares with one.
        wanted_by: Name of the objective, for messages.

    Attributes:
        roles: Roles of the generator that it asks for.

    Raises:
        UserError: An objective that needs a reference, and none; a text encoder that trains; a space that does not
            fit the model.
    """

    def __init__(
        self, generator: Generator, config: SurrogateConfig, *, needs_reference: bool, wanted_by: str
    ) -> None:
        self.generator, self.config = generator, config
        self._reference = _ROLES[config.reference] if needs_reference else None
        if needs_reference and self._reference is None:
            raise UserError(
                f"{wanted_by} compares the student with a reference, and reference is none; set it to start or ema, "
                "or choose an objective without one (cpo, sft, mapo)"
            )
        if generator.trains_text:
            raise UserError(f"{wanted_by} trains the denoiser alone; set model.train.text_encoder to false")
        self.space = make_space(config.space, generator)
        wanted = (*self.space.roles, *(() if self._reference is None else (self._reference,)))
        self.roles: tuple[str, ...] = tuple(dict.fromkeys(wanted))
        for role in self.roles:
            generator.roles.add(role)

    def compare(
        self,
        x0: Float[Tensor, "n c h w"],
        cond: Conditioning,
        key: Key,
        *,
        mask: Float[Tensor, "n 1 h w"] | None = None,
    ) -> Compared:
        """One evaluation of the student with a graph, and one of the reference without.

        Args:
            x0: Clean latents: of the b rows of the key, or of b winners and then their b losers.
            cond: Prompts, batch size n.
            key: Address of the draws, of b rows; what stands in one row of it shares time and noise.
            mask: Weight of each place, in [0, 1]; the latent space alone has places.
        """
        copies = len(x0) // len(key)
        t = self._times(key).to(x0.device).repeat(copies)
        noise = key.normal("surrogate/noise", x0.shape[1:], device=x0.device).repeat(copies, 1, 1, 1)
        with torch.no_grad():
            x_t, eps = self._states(x0, noise, t, cond, key)
            truth = self.space.truth(x0, eps, x_t, t, cond, key, mask=mask)
            start = None
            if self._reference is not None:
                start = self.generator.denoise(self._reference, x_t, t, cond)
                reference = self.space.distance(start, truth)
        student = self.generator.denoise(STUDENT, x_t, t, cond)
        error = self.space.distance(student, truth)
        if start is None:
            return Compared(t, error)
        return Compared(t, error, reference, distance_to_start(student.raw.detach(), start.raw))

    def _states(
        self, x0: Tensor, noise: Tensor, t: Tensor, cond: Conditioning, key: Key
    ) -> tuple[Tensor, Tensor]:
        if isinstance(self.config.states, NoisedStates):
            return self.generator.process.add_noise(x0, noise, t), noise
        return inverted(self.generator, self.config.states, x0, t, cond, key)

    def _times(self, key: Key) -> Float[Tensor, " b"]:
        if self.config.times == "logit_normal":
            drawn = torch.sigmoid(key.normal("surrogate/time", (1,))[:, 0])
            return self.generator.schedule.shifted(drawn).clamp(min=self.space.earliest)
        grid = self._grid()
        return grid[key.integers("surrogate/time", 0, len(grid))]

    def _grid(self) -> Float[Tensor, " m"]:
        """The times that a uniform draw takes, from the first that the space has."""
        points = self.config.grid_steps or self.generator.num_train_timesteps
        lowest = max(1, math.ceil(self.space.earliest * points))
        return self.generator.schedule.shifted(torch.arange(lowest, points + 1) / points)

    def count(self, count: Evaluations, copies: int) -> None:
        """Evaluations per training step, for so many samples per row."""
        if isinstance(self.config.states, InvertedStates):
            # a logit-normal time is as often above 1 - k as below k: the mean is that of a uniform one
            count.add("unet forward", copies * self.config.states.evaluations(self._grid()))
        if self._reference is not None:
            count.add("unet forward", copies)
        count.add("unet forward+backward", copies)
        self.space.count(count, copies, reference=self._reference is not None)
