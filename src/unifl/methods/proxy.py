"""The latent proxy as a reward that follows its expert while the student moves (RG-LCD, arXiv 2403.11027).

    L_student += -weight * mean s(z^(0), c)                                     s: the proxy's cosine, proxy frozen
    L_proxy    = mean sum over pairs (i, j) of KL(q_ij || p_ij)                 latents constants
    p_ij = softmax([S(z^(i), c), S(z^(j), c)]),  q_ij = softmax([Q(z^(i), c), Q(z^(j), c)] / temperature)

z^(0) is the student's prediction, z^(1) its target, z^(2) the real latent, S the proxy's logit, and Q the expert, which
is only ever evaluated. Over-optimisation of the expert is what this avoids: no gradient of it reaches the student.

The published code differs in what it does by mistake: there the captions of most experts do not follow the permutation
of their latents, every weight of the proxy trains whatever was locked, and hard labels are taken over the wrong axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.base import Feedback
from unifl.feedback.black_box import require_scores, try_feedback
from unifl.feedback.latent_proxy import LatentProxy
from unifl.losses.proxy import pairwise_agreement, pairwise_fit
from unifl.methods.base import MicroBatch, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import DecodeConfig
from unifl.models.generator import Generator
from unifl.randomness import Key

_SCRATCH = "proxy"


@dataclass(kw_only=True)
class ProxyConfig:
    """A latent proxy as the reward, with the settings of RG-LCD's published code."""

    weight: float = 1.0
    """Of the student's loss; the reward is a cosine."""
    train: bool = True
    """False freezes the proxy, for comparison: it no longer follows its expert, and can be hacked as any reward."""
    batch_size: int = 16
    """Rows of a micro-batch on which the expert is asked, three latents each, and the proxy is fitted."""
    temperature: float = 1.0
    """Of the expert's preferences, in units of its scores. 1 suits scores that are logits of preference, 0.01 raw
    cosines of a CLIP."""
    loss: Literal["kl", "hard"] = "kl"
    """kl: the expert's preferences, softened by the temperature. hard: labels; the real latent always wins, and of
    student and target the one that the expert prefers."""
    smooth_real: bool = False
    """With kl: never teach that a generated latent beats the real one; such a pair counts as undecided."""
    image_blocks: int | None = 2
    """Last blocks of the tower on latents that train; null is all of it."""
    text_blocks: int | None = 5
    """Last blocks of the tower on prompts that train; null is all of it, 0 none, which encodes every prompt once."""

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"proxy.{name} is {getattr(self, name)}; it must be above 0")
        if self.batch_size < 1:
            raise UserError(f"proxy.batch_size is {self.batch_size}; it must be at least 1")
        if self.loss == "hard" and self.smooth_real:
            raise UserError(
                "proxy.smooth_real softens the expert's preferences, and proxy.loss is hard, where the real latent "
                "always wins; choose one of the two"
            )


@dataclass(frozen=True)
class _Kept:
    """What the proxy's update needs from the student's.

    Attributes:
        latents: Student, target and real of n rows, one after the other: 3 n, scaled, detached.
        scores: The expert's on the same.
        prompts: n captions.
    """

    latents: Float[Tensor, "m c h w"]
    scores: Float[Tensor, " m"]
    prompts: list[str]


class ProxyTerm:
    """Both sides: the student's term, and the update of the proxy.

    In a step the student's update calls `student` and `keep`, the proxy's update calls `update`. The expert is asked in
    `keep`, before any weight moves, so that a run whose expert fails stops with a whole state.

    Args:
        generator: The model in training; decodes for an expert on pictures.
        proxy: Pre-trained. It is moved to the generator's device, and trains in place.
        expert: What the proxy follows, on pictures or on latents, with or without a gradient; may be None where
            `config.train` is off.
        config: Settings.
        decode: How pictures are decoded.

    Attributes:
        updates: ("proxy",), or nothing where the proxy is frozen: what comes after "student".
        parameters: By update, what the proxy's optimiser gets. Listed once; all else is frozen and stays so.
        modules: What checkpoints hold.

    Raises:
        UserError: No expert, a proxy for other latents, or nothing to train.
        FeedbackFailed: An expert that gives no usable answer when it is first asked.
    """

    def __init__(
        self,
        generator: Generator,
        proxy: LatentProxy,
        expert: Feedback | None,
        config: ProxyConfig,
        decode: DecodeConfig,
    ) -> None:
        vae = generator.pipeline.vae.config
        proxy.require_fit(
            generator.latent_shape, scaling_factor=vae.scaling_factor, shift=vae.get("shift_factor") or 0.0
        )
        self.generator = generator
        self.proxy = proxy.to(generator.device)
        self.config = config
        self.decode = decode
        self.expert = expert if config.train else None
        self.updates: tuple[str, ...] = ()
        self.parameters: Mapping[str, list[nn.Parameter]] = {}
        self.modules: Mapping[str, nn.Module] = {}
        if not config.train:
            proxy.requires_grad_(False)
            return
        if expert is None:
            raise UserError("a proxy that trains follows an expert; name one, or set proxy.train to false")
        shape = generator.latent_shape if expert.space == "latent" else (3, *generator.image_size)
        try_feedback(expert, torch.full((2, *shape), 0.5, device=generator.device))
        found = proxy.unlock(image_blocks=config.image_blocks, text_blocks=config.text_blocks)
        self.updates = ("proxy",)
        self.parameters = {"proxy": list(found.values())}
        self.modules = {"proxy": proxy}

    def student(
        self, latents: Float[Tensor, "b c h w"], prompts: Sequence[str], output: StepOutput
    ) -> Float[Tensor, " b"]:
        """The student's loss and its reward, added to `output`; no gradient reaches the proxy.

        Args:
            latents: Predicted clean latents, scaled, with graph.
            prompts: Their captions.
            output: Gets the loss and the metric "reward/proxy".

        Returns:
            The reward of each row, a cosine.
        """
        reward = self.proxy.judge(latents, prompts)
        output.losses["reward/proxy"] = -self.config.weight * reward.mean()
        output.metrics["reward/proxy"] = reward.detach().mean()
        return reward

    @torch.no_grad()
    def keep(
        self,
        batch: MicroBatch,
        student_latents: Float[Tensor, "b c h w"],
        target_latents: Float[Tensor, "b c h w"],
        real_latents: Float[Tensor, "b c h w"],
        prompts: Sequence[str],
    ) -> None:
        """Ask the expert about some rows, drawn by the key, and lay them by for the proxy's update.

        Args:
            batch: Gives the key and the place.
            student_latents: The student's predictions, scaled.
            target_latents: Its targets.
            real_latents: The real latents.
            prompts: Their captions.

        Raises:
            FeedbackFailed: The expert gave no usable answer.
        """
        if self.expert is None:
            return
        rows = self._rows(batch.key)
        chosen = [latents.detach()[rows] for latents in (student_latents, target_latents, real_latents)]
        captions = [prompts[row] for row in rows]
        latents = torch.cat(chosen)
        shown = latents
        if self.expert.space == "pixel":
            shown = self.generator.decode(latents, slicing=self.decode.slicing, dtype=self.decode.dtype)
        scores = require_scores(self.expert(shown, captions * 3), shown, name=self.expert.name)
        batch.scratch[_SCRATCH] = _Kept(latents, scores, captions)

    def update(self, batch: MicroBatch) -> StepOutput:
        """The proxy's loss on what `keep` laid by, and how far it agrees with its expert."""
        if not self.config.train:
            return StepOutput(losses={})
        kept: _Kept = batch.scratch.pop(_SCRATCH)
        proxy = _columns(self.proxy.logits(kept.latents, kept.prompts * 3))
        expert = _columns(kept.scores)
        loss = pairwise_fit(
            proxy,
            expert,
            temperature=self.config.temperature,
            smooth_real=self.config.smooth_real,
            hard=self.config.loss == "hard",
        )
        agreement = pairwise_agreement(proxy.detach(), expert).mean(0)
        return StepOutput(
            losses={self.config.loss: loss.mean()},
            metrics={
                "proxy/agreement": agreement.mean(),
                "proxy/agreement_generated": agreement[0],
                "proxy/scale": self.proxy.logit_scale.detach().exp(),
                "expert/student": expert[:, 0].mean(),
                "expert/target": expert[:, 1].mean(),
                "expert/real": expert[:, 2].mean(),
            },
        )

    def _rows(self, key: Key) -> list[int]:
        """Rows of the micro-batch in a random order, as many as the expert is asked about."""
        draws = key.integers("proxy/rows", 0, 2**62).tolist()
        return sorted(range(len(key)), key=draws.__getitem__)[: self.config.batch_size]

    def count(self, count: Evaluations) -> None:
        """Evaluations of one training step; a caption that occurs twice in a micro-batch is encoded once."""
        trains_text = self.proxy.trains_text
        count.add("proxy forward+backward")
        count.add("proxy text forward", float(trains_text))
        if not self.config.train or self.expert is None:
            return
        rows = min(self.config.batch_size, count.batch_size) / count.batch_size
        if self.expert.space == "pixel":
            count.add("vae decode", 3 * rows)
        count.add(f"expert/{self.expert.name} forward", 3 * rows)
        count.add("proxy forward+backward", 3 * rows)
        count.add("proxy text forward+backward", rows * trains_text)


def _columns(values: Float[Tensor, " m"]) -> Float[Tensor, "n 3"]:
    """Student, target and real of n rows side by side."""
    return values.view(3, -1).T
