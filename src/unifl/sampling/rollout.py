"""Denoise without a graph, then evaluate once with one: the rollouts of reward-gradient training.

Steps are counted by what is left: a schedule of n steps visits states with n, n - 1, ..., 1 evaluations to go,
and k is the number of further steps *after* an evaluation, so k = n - 1 is the noisiest state and k = 0 the last
one. The evaluation at `stop` = k carries the graph, and x0 is predicted from it in one go.

References: ReFL (arXiv 2304.05977) from pure noise; UniFL (arXiv 2404.05595, algorithm 1) from a real picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.models.conditioning import Conditioning, Prediction
from unifl.models.generator import Generator
from unifl.process import Spacing, ddim_step
from unifl.randomness import Key
from unifl.sampling.guidance import FixedGuidance, Guidance, NoGuidance, RangeGuidance, halves


@dataclass(kw_only=True)
class RolloutConfig:
    """What every rollout in training has to settle; the terms of a method extend it."""

    num_steps: int = 20
    """Steps of the sampler's schedule."""
    stop: tuple[int, int] | None = (0, 5)
    """Smallest and largest number of steps left after the evaluation that carries the graph, both included;
    null spreads them over the whole schedule."""
    spacing: Spacing = "trailing"
    """Timesteps of the schedule; use what the model will be sampled with. Trailing ones begin at pure noise, as
    sampling does, and lose least with few steps; they are the default of training and sampling alike."""
    guidance: NoGuidance | FixedGuidance | RangeGuidance = field(default_factory=NoGuidance)
    """Guidance of the steps without a graph."""
    grad_guidance: float | None = 1.0
    """Guidance of the evaluation with a graph; 1 costs half as much, null takes that of the other steps."""
    negative_prompt: str | None = None
    """The unconditional half's prompt; null takes what the pipeline takes when it is given none."""

    def check(self, name: str, *, start: int | None = None) -> None:
        """Check the schedule.

        Args:
            name: Where the config stands, for the message.
            start: Steps left at the first state; all of them by default.

        Raises:
            UserError: A schedule that makes no sense.
        """
        start = self.num_steps if start is None else start
        low, high = self.stop_range(start)
        if self.num_steps < 1:
            raise UserError(f"{name}.num_steps is {self.num_steps}; it must be at least 1")
        if not 1 <= start <= self.num_steps:
            raise UserError(f"{name}.start is {start}; choose 1 to {self.num_steps} (num_steps)")
        if not 0 <= low <= high < start:
            raise UserError(
                f"{name}.stop is [{low}, {high}]; choose 0 <= low <= high <= {start - 1} "
                f"(the rollout starts with {start} of {self.num_steps} steps left)"
            )
        if self.grad_guidance is not None and not self.grad_guidance >= 0:
            raise UserError(f"{name}.grad_guidance is {self.grad_guidance}; it must be 0 or more, or null")

    def evaluations(self, *, start: int | None = None) -> tuple[float, float]:
        """Expected network evaluations per picture: (without a graph, with one); guided ones count twice."""
        start = self.num_steps if start is None else start
        before = start - 1 - sum(self.stop_range(start)) / 2
        graded = halves(self.graded_guidance)
        return before * halves(self.guidance), float(graded)

    @property
    def graded_guidance(self) -> Guidance:
        """Guidance of the evaluation with a graph."""
        return self.guidance if self.grad_guidance is None else FixedGuidance(scale=self.grad_guidance)

    @property
    def needs_negative(self) -> bool:
        """Whether any evaluation has an unconditional half."""
        return halves(self.guidance) == 2 or halves(self.graded_guidance) == 2

    def stop_range(self, start: int) -> tuple[int, int]:
        """Smallest and largest k of a rollout that begins with `start` steps left."""
        return (0, start - 1) if self.stop is None else self.stop

    def draw_stop(self, key: Key, purpose: str, *, start: int | None = None) -> int:
        """The k of this step, uniform over `stop_range`, the same for all samples and processes."""
        low, high = self.stop_range(self.num_steps if start is None else start)
        return key.shared_integer(f"{purpose}/stop", low, high + 1)


@dataclass(frozen=True)
class Rollout:
    """The end of a rollout.

    Attributes:
        prediction: The evaluation with a graph: its state, raw output, x0 and eps.
        times: t of every evaluation in order, the one with a graph last.
        guidance: Guidance of the evaluation with a graph.
    """

    prediction: Prediction
    times: tuple[float, ...]
    guidance: float


def prompt_rollout(
    generator: Generator,
    cond: Conditioning,
    key: Key,
    *,
    num_steps: int,
    stop: int,
    spacing: Spacing = "trailing",
    guidance: float = 1.0,
    grad_guidance: float | None = 1.0,
    negative: Conditioning | None = None,
    role: str = "student",
    purpose: str = "prompt_rollout",
) -> Rollout:
    """From z_T ~ N(0, I), with a prompt alone.

    Args:
        generator: The model.
        cond: One conditioning per sample of `key`.
        key: Address of the noise.
        num_steps: Steps n of the schedule.
        stop: Steps k left after the evaluation with a graph, 0 to n - 1; n - 1 - k evaluations go before it.
        spacing: Timesteps of the schedule.
        guidance: w of the evaluations without a graph.
        grad_guidance: w of the one with a graph; None takes `guidance`.
        negative: Conditioning of the unconditional half, where w is not 1; None takes the pipeline's own.
        role: Whose weights; the current ones for training.
        purpose: Name of the noise; rollouts of one step that should differ take different names.

    Raises:
        UserError: `stop` outside the schedule.
    """
    noise = key.normal(f"{purpose}/noise", generator.latent_shape, device=cond.embeds.device)
    return _descend(
        generator,
        noise,
        cond,
        num_steps=num_steps,
        start=num_steps,
        stop=stop,
        spacing=spacing,
        guidance=guidance,
        grad_guidance=grad_guidance,
        negative=negative,
        role=role,
    )


def image_rollout(
    generator: Generator,
    latents: Float[Tensor, "b c h w"],
    cond: Conditioning,
    key: Key,
    *,
    stop: int,
    num_steps: int = 20,
    start: int = 10,
    spacing: Spacing = "trailing",
    guidance: float = 1.0,
    grad_guidance: float | None = 1.0,
    negative: Conditioning | None = None,
    role: str = "student",
    purpose: str = "image_rollout",
) -> Rollout:
    """From a real picture, diffused to the state with `start` of `num_steps` evaluations to go.

    Even at `start` = `num_steps` some of the picture is left: a schedule of Stable Diffusion keeps 0.068 of
    its amplitude at the last timestep. Sampling starts from noise alone, which is `prompt_rollout`.

    Args:
        generator: The model.
        latents: Scaled latents of the pictures.
        cond: One conditioning per sample.
        key: Address of the noise.
        stop: Steps k left after the evaluation with a graph, 0 to start - 1; start - 1 - k go before it.
        num_steps: Steps of the schedule.
        start: Evaluations to go from the diffused picture, 1 to `num_steps`.
        spacing: Timesteps of the schedule.
        guidance: w of the evaluations without a graph.
        grad_guidance: w of the one with a graph; None takes `guidance`.
        negative: Conditioning of the unconditional half, where w is not 1; None takes the pipeline's own.
        role: Whose weights.
        purpose: Name of the noise.

    Raises:
        UserError: `start` or `stop` outside the schedule.

    Reference:
        UniFL, arXiv 2404.05595, algorithm 1; 20, 10 and k in 0..5 in section 5.1.
    """
    if not 1 <= start <= num_steps:
        raise UserError(f"start is {start}; choose 1 to {num_steps} (num_steps)")
    first = generator.schedule.times(num_steps, spacing)[num_steps - start].to(latents)
    noise = key.normal(f"{purpose}/noise", latents.shape[1:], device=latents.device, dtype=latents.dtype)
    return _descend(
        generator,
        generator.process.add_noise(latents, noise, first.expand(len(latents))),
        cond,
        num_steps=num_steps,
        start=start,
        stop=stop,
        spacing=spacing,
        guidance=guidance,
        grad_guidance=grad_guidance,
        negative=negative,
        role=role,
    )


def _descend(
    generator: Generator,
    x_t: Float[Tensor, "b c h w"],
    cond: Conditioning,
    *,
    num_steps: int,
    start: int,
    stop: int,
    spacing: Spacing,
    guidance: float,
    grad_guidance: float | None,
    negative: Conditioning | None,
    role: str,
) -> Rollout:
    """DDIM (for a flow: Euler) from the state with `start` evaluations to go to that with `stop` + 1, with a graph."""
    if not 0 <= stop < start:
        raise UserError(f"stop is {stop}; choose 0 to {start - 1} (the rollout has {start} steps to go)")
    grid = generator.schedule.times(num_steps, spacing).to(x_t.device)
    first, last = num_steps - start, num_steps - 1 - stop
    with torch.no_grad():
        for index in range(first, last):
            now, then = grid[index].expand(len(x_t)), grid[index + 1].expand(len(x_t))
            step = generator.denoise(role, x_t, now, cond, guidance=guidance, negative=negative)
            x_t = ddim_step(step.x0, step.eps, then, generator.process)
    graded = guidance if grad_guidance is None else grad_guidance
    prediction = generator.denoise(
        role, x_t, grid[last].expand(len(x_t)), cond, guidance=graded, negative=negative
    )
    return Rollout(prediction, tuple(grid[first : last + 1].tolist()), graded)
