"""Latent consistency distillation (Luo et al., arXiv 2310.04378), guided by rewards (RG-LCD, arXiv 2403.11027) or not.

    t = (i + 1) / N, s = i / N, i uniform;  x_t = alpha x0 + sigma eps;  w uniform in its range
    x_s~ = solver step from t to s along the teacher's u + w (c - u)                        (no gradient)
    L = rho( f(x_t, t -> e, w), f^-(x_s~, s -> e, w) ) - sum_k weight_k R_k( f(x_t, t -> 0, w), c )

f is the student as a flow map, f^- its moving average or itself without gradient, rho pseudo-Huber or the square, and
e = 0. What else is in the literature under other names is an argument (`LCDConfig`): TCD draws e (arXiv 2402.19159),
PCM takes the end of a phase (arXiv 2405.18407, here without its discriminator), SCott's solver adds noise (arXiv
2403.01505, without its discriminator), MLCM starts from the teacher's trajectory (arXiv 2406.05768).

Differences from the published code: the embedding of w starts at zero; at the last interval the solver ends at index 0,
as there; guidance counts from 1 (none), as everywhere here.

Data: pictures with captions. Copies of the backbone with full fine-tuning: teacher and, with `target: ema`, the
average; none with LoRA. Cost of a step: `evaluations`; with the defaults per picture one evaluation with a graph, three
without (both halves of the teacher, and the target), and one encode where pictures are not encoded already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.data.encoded import EncodedSample
from unifl.errors import UserError
from unifl.feedback import Feedback, LatentProxy
from unifl.losses.consistency import pseudo_huber, squared
from unifl.methods.base import MicroBatch, Source, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.guiding import GuidingTerm
from unifl.methods.lcd_config import LCDConfig
from unifl.methods.pictures import Rows, check_latents, need_source
from unifl.methods.proxy import ProxyTerm
from unifl.models.conditioning import Conditioning, Prediction
from unifl.models.generator import Generator
from unifl.models.roles import STUDENT
from unifl.models.schedule import require_diffusion
from unifl.process import ConsistencySampler, ddim_map, lcm_map, solve
from unifl.randomness import Key
from unifl.sampling import draw_guidance_each, halves

TEACHER = "teacher"


class LCD:
    """See the top of this file; satisfies `methods.base.Method`.

    Args:
        generator: The model.
        config: Settings.
        rewards: Rewards by name; those that `config.rewards` weighs are used.
        proxy: The latent proxy of `config.proxy`.
        expert: What that follows; None where it is frozen.
        sources: Data by name; `config.source` must be there.

    Raises:
        UserError: A flow model, something missing, a text encoder that trains, a reward without gradient, a grid that
            does not divide the model's timesteps.
    """

    def __init__(
        self,
        generator: Generator,
        config: LCDConfig,
        *,
        rewards: Mapping[str, Feedback] | None = None,
        proxy: LatentProxy | None = None,
        expert: Feedback | None = None,
        sources: Mapping[str, Source],
    ) -> None:
        require_diffusion(generator.schedule, wanted_by="lcd")
        need_source(config.source, sources, wanted_by="lcd")
        if config.states == "data":
            check_latents(config.source, sources[config.source], generator)
        if generator.trains_text:
            raise UserError("lcd distils the denoiser alone; set model.train.text_encoder to false")
        if generator.num_train_timesteps % config.grid_steps:
            raise UserError(
                f"lcd.grid_steps is {config.grid_steps}; choose a divisor of {generator.num_train_timesteps}, the "
                "model's timesteps"
            )
        self.generator = generator
        self.config = config
        self.sources: Mapping[str, Source] = {config.source: sources[config.source]}
        self.roles: tuple[str, ...] = (TEACHER, "ema") if config.target == "ema" else (TEACHER,)
        for role in self.roles:
            generator.roles.add(role)
        self.guiding: GuidingTerm | None = None
        if config.rewards is not None and config.rewards.active:
            self.guiding = GuidingTerm(
                generator, config.rewards, rewards or {}, config.decode, wanted_by="lcd"
            )
        self.proxy: ProxyTerm | None = None
        if config.proxy is not None:
            if proxy is None:
                raise UserError(
                    "lcd.proxy is set, and no proxy was given; name its folder, or set lcd.proxy to null"
                )
            self.proxy = ProxyTerm(generator, proxy, expert, config.proxy, config.decode)
        student = {"student": list(generator.trainable_parameters().values())}
        self.parameters: Mapping[str, list[nn.Parameter]] = student | dict(
            self.proxy.parameters if self.proxy else {}
        )
        self.updates: tuple[str, ...] = tuple(self.parameters)
        self.modules: Mapping[str, nn.Module] = self.proxy.modules if self.proxy else {}

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """The losses of one micro-batch for "student", then for "proxy" where one trains."""
        if update == "proxy":
            assert self.proxy is not None
            return self.proxy.update(batch)
        rows = Rows(self.generator, batch.data[self.config.source])
        asked = _Asked(self.generator, self.config, rows.cond, batch.key)
        with torch.no_grad():  # first, so that nothing of it passes while the student's graph is held
            x_t = self._states(asked, rows)
            goal = self._goal(asked, x_t)
            target = self._jump(goal, asked.end)
        student = asked.predict(STUDENT, x_t, asked.t)
        output = StepOutput(
            losses={"distillation": self._distance(self._jump(student, asked.end), target).mean()}
        )
        clean = self._clean(student)
        if self.guiding is not None:
            self.guiding.add(
                output,
                clean,
                rows.prompts,
                batch.key,
                raw=student.raw,
                loss=output.losses["distillation"],
            )
        if self.proxy is not None:
            assert asked.real is not None
            self.proxy.student(clean, rows.prompts, output)
            self.proxy.keep(batch, clean, self._clean(goal), asked.real, rows.prompts)
        return output

    def _goal(self, asked: _Asked, x_t: Float[Tensor, "b c h w"]) -> Prediction:
        """What the target network predicts one solver step further on."""
        x_s = solve(
            asked.teacher,
            x_t,
            asked.t,
            asked.s,
            self.generator.process,
            self.config.solver,
            noise=lambda number: asked.noise(number, x_t.shape[1:]),
        )
        return asked.predict("ema" if self.config.target == "ema" else STUDENT, x_s, asked.s)

    def _distance(self, estimate: Tensor, target: Tensor) -> Float[Tensor, " b"]:
        if self.config.loss == "huber":
            return pseudo_huber(estimate, target, self.config.huber_c)
        return squared(estimate, target)

    # --- flow maps ------------------------------------------------------------------------------------------

    def _jump(self, prediction: Prediction, end: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        if self.config.boundary == "lcm":
            return self._clean(prediction)
        return ddim_map(
            prediction.x_t, prediction.x0, prediction.eps, prediction.t, end, self.generator.process
        )

    def _clean(self, prediction: Prediction) -> Float[Tensor, "b c h w"]:
        """The jump to t = 0."""
        if self.config.boundary == "ddim":
            return prediction.x0
        return lcm_map(prediction.x_t, prediction.x0, prediction.t, self.generator.num_train_timesteps)

    # --- where the student is asked -------------------------------------------------------------------------

    def _states(self, asked: _Asked, rows: Rows) -> Float[Tensor, "b c h w"]:
        key, config, process = asked.key, self.config, self.generator.process
        x0 = None
        if config.states != "teacher":
            x0 = rows.drawn_latents(key) if config.states == "data" else self._own_pictures(asked)
            asked.real = x0 if config.states == "data" else None
        shape = self.generator.latent_shape if x0 is None else x0.shape[1:]  # a bucket has its own
        eps = key.normal("lcd/noise", shape, device=asked.t.device)
        if x0 is None:
            start = torch.ones_like(asked.t)
            steps = type(config.solver)(substeps=config.rollout_steps)
            return solve(asked.teacher, eps, start, asked.t, process, steps)
        return process.add_noise(x0, eps, asked.t)

    def _own_pictures(self, asked: _Asked) -> Float[Tensor, "b c h w"]:
        """Clean latents that the student draws in a few steps."""
        config, generator = self.config, self.generator
        times = ConsistencySampler(origin_steps=config.grid_steps).times(
            config.rollout_steps, generator.num_train_timesteps
        )
        x_t = asked.key.normal("lcd/own", generator.latent_shape, device=asked.t.device)
        clean = x_t
        for number, time in enumerate(times.tolist()):
            t = torch.full_like(asked.t, time)
            if number:
                noise = asked.key.normal(f"lcd/own/{number}", generator.latent_shape, device=asked.t.device)
                x_t = generator.process.add_noise(clean, noise, t)
            clean = self._clean(asked.predict(STUDENT, x_t, t))
        return clean

    # --- accounts -------------------------------------------------------------------------------------------

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Samples through each network in one training step."""
        config, count = self.config, Evaluations(batch_size, trains_text=False)
        if config.states == "data" and not isinstance(self.sources[config.source][0], EncodedSample):
            count.latents(config.source)
        per_teacher = halves(config.guidance)
        count.add("unet forward+backward")
        count.add("unet forward", 1 + per_teacher * config.solver.evaluations)
        if config.states == "teacher":
            count.add("unet forward", per_teacher * config.rollout_steps)
        if config.states == "student":
            count.add("unet forward", config.rollout_steps)
        if self.guiding is not None:
            self.guiding.count(count)
        if self.proxy is not None:
            self.proxy.count(count)
        return count.per_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept between steps."""


class _Asked:
    """The draws of one micro-batch: times t, s and e, guidance, and the networks under these conditions.

    Attributes:
        key: Address of the draws.
        t: Where the student is asked, (b,).
        s: Where its target is asked.
        end: Where both jump to.
        real: Latents of the pictures that states were made from, where they were.
    """

    def __init__(self, generator: Generator, config: LCDConfig, cond: Conditioning, key: Key) -> None:
        self.key = key
        self.real: Float[Tensor, "b c h w"] | None = None
        self._generator, self._cond = generator, cond
        points, device = config.grid_steps, cond.embeds.device
        index = key.integers("lcd/index", 0, points)
        self.t = ((index + 1) / points).to(device, torch.float32)
        # the last interval ends at index 0, which still holds noise, as the solver of the published code does
        self.s = (index / points).to(device, torch.float32).clamp(min=1 / generator.num_train_timesteps)
        self.end = (_end(index, config, key) / points).to(device, torch.float32)
        self._guidance = draw_guidance_each(config.guidance, key, "lcd/guidance", device=device)
        # a student that is not told the scale draws as if guided by the mean one (LCM-LoRA)
        self._told = self._guidance if generator.embeds_guidance() else 1.0
        self._negative = None
        if halves(config.guidance) == 2:
            negative = generator.encode_negative(config.negative_prompt, len(key))
            self._negative = replace(negative, time_ids=cond.time_ids)

    def teacher(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided teacher as a field."""
        found = self._generator.denoise(
            TEACHER, x_t, t, self._cond, guidance=self._guidance, negative=self._negative
        )
        return found.x0, found.eps

    def predict(self, role: str, x_t: Tensor, t: Tensor) -> Prediction:
        """What the student or its average predicts."""
        return self._generator.denoise(role, x_t, t, self._cond, guidance=self._told)

    def noise(self, number: int, shape: Sequence[int]) -> Tensor:
        """Of a stochastic solver's substep."""
        return self.key.normal(f"lcd/solver/{number}", shape, device=self._cond.embeds.device)


def _end(index: Tensor, config: LCDConfig, key: Key) -> Tensor:
    """Grid point that jumps go to, for intervals that end at grid point `index`."""
    if config.end == "zero":
        return torch.zeros_like(index)
    if config.end == "uniform":
        return (key.uniform("lcd/end") * (index + 1)).floor().to(index.dtype).minimum(index)
    edges = torch.arange(config.phases) * config.grid_steps // config.phases
    return edges[torch.searchsorted(edges, index, right=True) - 1]
