"""Pre-training of a latent proxy: latents and their captions find each other, as in CLIP (arXiv 2103.00020).

RG-LCD (arXiv 2403.11027) starts its proxy this way, on latents of real pictures, before an expert corrects it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.latent_proxy import LatentProxy
from unifl.losses.proxy import contrastive
from unifl.randomness import row_order


@dataclass(kw_only=True)
class ProxyFitConfig:
    """How a latent proxy is pre-trained."""

    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 128
    """Pairs per step; each caption is told apart from the others of its batch."""
    learning_rate: float = 5e-4
    """Peak of AdamW's learning rate; warm-up, then a cosine to 0."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Of AdamW, on matrices; biases, norms, places and the logit scale have none."""
    max_grad_norm: float = 1.0
    """Largest norm of a gradient."""
    held_out: int = 256
    """Pairs kept back; retrieval accuracy is measured among them, so it depends on this number."""
    evaluate_every: int = 200
    """Steps between two measurements."""
    keep_best: bool = True
    """End with the weights of the best held-out loss instead of the last ones."""
    seed: int = 0
    """Of the split and of the order of pairs."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} of a proxy's pre-training is {getattr(self, name)}; it must be at least 1"
                )
        if self.held_out < 2 or self.batch_size < 2:
            raise UserError("held_out and batch_size of a proxy's pre-training must be at least 2")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be above 0")


@dataclass(frozen=True)
class ProxyFitRow:
    """One measurement: step, mean training loss since the last one, held-out loss and retrieval accuracy."""

    step: int
    loss: float
    held_out_loss: float
    held_out_accuracy: float
    """Share of held-out latents whose caption comes first among all held-out ones, averaged with the converse."""


@dataclass(frozen=True)
class ProxyFitResult:
    """What pre-training found: measurements in order (the first is before training), and whose weights remain."""

    history: list[ProxyFitRow]
    best: ProxyFitRow


def pretrain_proxy(
    proxy: LatentProxy,
    latents: Float[Tensor, "n c h w"] | Sequence[Tensor],
    prompts: Sequence[str],
    *,
    config: ProxyFitConfig,
    progress: Callable[[ProxyFitRow], None] | None = None,
) -> ProxyFitResult:
    """Train a proxy in place on latents with captions, by the symmetric contrastive loss.

    Args:
        proxy: Its parameters with `requires_grad` are trained (`unlock` chooses them); latents go to its device.
        latents: Scaled, as `Generator.encode` gives them: a tensor, or anything with rows (c, h, w).
        prompts: Their captions. Equal captions count as each other's match.
        config: Settings.
        progress: Called with every measurement.

    Raises:
        UserError: Too few pairs, captions that do not go with the latents, latents that the proxy cannot read, or
            nothing to train.
    """
    parameters = _check(proxy, latents, prompts, config)
    order = [row_order(len(prompts), config.seed, "proxy/split", row) for row in range(len(prompts))]
    held_out, kept = order[: config.held_out], order[config.held_out :]
    optimizer = torch.optim.AdamW(_groups(parameters, config), lr=config.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))

    history = [ProxyFitRow(0, math.nan, *_measure(proxy, latents, prompts, held_out, config.batch_size))]
    best, weights, recent = history[0], _copy(parameters), []
    batch_size = min(config.batch_size, len(kept))
    for step in range(1, config.steps + 1):
        first = (step - 1) * batch_size
        rows = [kept[row_order(len(kept), config.seed, "proxy/fit", first + n)] for n in range(batch_size)]
        seen, read = _embeddings(proxy, latents, prompts, rows)
        loss = contrastive(proxy.scale() * seen @ read.T, _same(prompts, rows, seen.device)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        recent.append(float(loss.detach()))
        if step % config.evaluate_every == 0 or step == config.steps:
            measured = _measure(proxy, latents, prompts, held_out, config.batch_size)
            history.append(ProxyFitRow(step, sum(recent) / len(recent), *measured))
            recent = []
            if not config.keep_best or history[-1].held_out_loss <= best.held_out_loss:
                best, weights = history[-1], _copy(parameters)
            if progress is not None:
                progress(history[-1])
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.copy_(value)
    return ProxyFitResult(history, best)


def _embeddings(
    proxy: LatentProxy, latents: Tensor | Sequence[Tensor], prompts: Sequence[str], rows: list[int]
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b e"]]:
    batch = torch.stack([latents[row] for row in rows]).to(proxy.logit_scale.device)
    return proxy.embed_latents(batch), proxy.embed_prompts([prompts[row] for row in rows])


def _same(prompts: Sequence[str], rows: list[int], device: torch.device) -> Bool[Tensor, "b b"]:
    numbers: dict[str, int] = {}
    captions = torch.tensor([numbers.setdefault(prompts[row], len(numbers)) for row in rows], device=device)
    return captions[:, None] == captions[None]


@torch.no_grad()
def _measure(
    proxy: LatentProxy,
    latents: Tensor | Sequence[Tensor],
    prompts: Sequence[str],
    rows: list[int],
    batch_size: int,
) -> tuple[float, float]:
    """Loss and retrieval accuracy among held-out rows, each against all others."""
    parts = [
        _embeddings(proxy, latents, prompts, rows[start : start + batch_size])
        for start in range(0, len(rows), batch_size)
    ]
    seen, read = (torch.cat(column) for column in zip(*parts, strict=True))
    logits, same = proxy.scale() * seen @ read.T, _same(prompts, rows, seen.device)
    here = torch.arange(len(rows), device=seen.device)
    right = torch.cat([same[here, logits.argmax(1)], same[here, logits.argmax(0)]])
    return float(contrastive(logits, same).mean()), float(right.float().mean())


def _groups(parameters: list[nn.Parameter], config: ProxyFitConfig) -> list[dict[str, object]]:
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2 and parameter.shape[0] > 1]
    own = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in own]
    return [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _copy(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _rate(step: int, config: ProxyFitConfig) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))


def _check(
    proxy: LatentProxy, latents: Tensor | Sequence[Tensor], prompts: Sequence[str], config: ProxyFitConfig
) -> list[nn.Parameter]:
    if len(latents) != len(prompts):
        raise UserError(
            f"there are {len(latents)} latents and {len(prompts)} captions; give one caption each"
        )
    if len(prompts) < config.held_out + 2:
        raise UserError(
            f"held_out={config.held_out} of {len(prompts)} pairs leaves too few to train on; use more pairs"
        )
    shape = proxy.config
    proxy.require_fit(tuple(latents[0].shape), scaling_factor=shape.scaling_factor, shift=shape.shift)
    parameters = list(proxy.trainable_parameters().values())
    if not parameters:
        raise UserError("the latent proxy has no trainable parameter; unlock some before pre-training it")
    return parameters
