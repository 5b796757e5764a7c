"""Where on its path a sample is looked at: noise added to it, or its inversion by the student.

InPO (Lu et al., arXiv 2503.18454) follows the probability flow from a picture towards noise and asks the network there;
the noise that such a state stands for, eps = (x_t - alpha x0) / sigma, is what a perfect inversion used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.models.roles import STUDENT
from unifl.process import ddim_step, per_sample
from unifl.randomness import Key


@dataclass(kw_only=True)
class NoisedStates:
    """x_t = alpha x0 + sigma eps."""

    kind: Literal["noised"] = "noised"


@dataclass(kw_only=True)
class InvertedStates:
    """DDIM run backwards from the picture with the student, without guidance; the defaults are those of InPO's code.

    A row stops at its own time: the last step is shortened, where the code asks the network at another time than that
    of the grid point which it reached.
    """

    kind: Literal["inverted"] = "inverted"
    steps: int = 10
    """Of an inversion up to t = 1; a row takes those below its time."""
    noise: float = 0.1
    """Added after each step, in standard deviations of DDPM's step back."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"states.steps is {self.steps}; it must be at least 1")
        if not self.noise >= 0:
            raise UserError(f"states.noise is {self.noise}; it must be 0 or more")

    def evaluations(self, times: Float[Tensor, " n"]) -> float:
        """Of the student without a graph per sample: the mean number of steps below these times."""
        return sum(float((times > number / self.steps).float().mean()) for number in range(self.steps))


def inverted(
    generator: Generator,
    config: InvertedStates,
    x0: Float[Tensor, "n c h w"],
    t: Float[Tensor, " n"],
    cond: Conditioning,
    key: Key,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """The state at t that the student's probability flow comes from, and the noise that it stands for.

    Args:
        generator: The model.
        config: Steps and noise.
        x0: Clean latents; samples of one row of the key share the noise that is added.
        t: One time per sample.
        cond: Prompts.
        key: Address of the draws.
    """
    process, copies = generator.process, len(x0) // len(key)
    x_t = x0.clone()
    lowest = 1 / generator.num_train_timesteps
    for number in range(config.steps):
        begin = number / config.steps
        rows = (t > begin).nonzero()[:, 0]
        if len(rows) == 0:
            break
        now = torch.full_like(t[rows], max(begin, lowest))
        then = t[rows].clamp(max=(number + 1) / config.steps)
        said = generator.denoise(STUDENT, x_t[rows], now, cond.rows(rows))
        further = ddim_step(said.x0, said.eps, then, process)
        if config.noise > 0:
            draws = key.normal(f"inversion/{number}", x0.shape[1:], device=x0.device).repeat(copies, 1, 1, 1)
            spread = _step_back_deviation(then, now, generator)
            further = further + config.noise * per_sample(spread, further) * draws[rows]
        x_t[rows] = further
    alpha, sigma = process.weights(t)
    return x_t, (x_t - per_sample(alpha, x0) * x0) / per_sample(sigma, x0)


def _step_back_deviation(t: Tensor, s: Tensor, generator: Generator) -> Float[Tensor, " n"]:
    """Standard deviation of q(x_s | x_t, x0) (DDPM, arXiv 2006.11239, eq. 7), for any alpha and sigma."""
    alpha_t, sigma_t = generator.process.weights(t)
    alpha_s, sigma_s = generator.process.weights(s)
    forward = (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).clamp(min=0)
    return sigma_s / sigma_t * forward.sqrt()
