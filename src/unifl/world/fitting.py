"""One resumable training loop for the world's own networks: AdamW, warm-up and cosine, EMA, checkpoints.

The package's networks (autoencoder, denoiser, judges, rewards, critics) differ only in their loss, so they
share this loop.  It is not the loop of `unifl.training`, which trains with feedback and is built on these.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of one fit.

    Args:
        restarts: steps at which the learning rate's cosine starts again (SGDR, 1608.03983).
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    clip: float = 1.0
    save_every: int = 500
    restarts: tuple[int, ...] = ()


def fit(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    config: FitConfig,
    folder: Path,
    *,
    name: str,
    snapshots: Mapping[int, Path] | None = None,
) -> nn.Module:
    """Train `module` in place to the end of `config.steps` and leave its EMA weights in it.

    Args:
        loss: the loss of a step; draws its own data from the step number, so that a resumed run sees the
            same data as an uninterrupted one.
        folder: holds `<name>.pt` while the fit is under way and `<name>.jsonl`, its losses.
        snapshots: where the EMA weights of given steps are written, as safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    average = [p.detach().clone() for p in parameters]
    state = folder / f"{name}.pt"
    start = _restore(state, module, optimizer, average)
    began, module_mode = time.time(), module.training
    module.train()
    with tqdm(
        range(start, config.steps), initial=start, total=config.steps, desc=name, mininterval=10
    ) as bar:
        for step in bar:
            _set_learning_rate(optimizer, config, step)
            value = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            if step % 50 == 0:
                _log(folder / f"{name}.jsonl", step, float(value.detach()), time.time() - began)
            if (step + 1) % config.save_every == 0:
                _save(state, module, optimizer, average, step + 1)
            if snapshots and step + 1 in snapshots:
                names = [key for key, p in module.named_parameters() if p.requires_grad]
                save_file(dict(zip(names, average, strict=True)), snapshots[step + 1])
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    module.train(module_mode)
    return module


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: FitConfig, step: int) -> None:
    start = max((r for r in config.restarts if r <= step), default=0)
    end = min((r for r in config.restarts if r > step), default=config.steps)
    warm = min(1.0, (step - start + 1) / max(1, config.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * (step - start) / (end - start)))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * warm * (0.01 + 0.99 * cosine)


def _log(path: Path, step: int, value: float, seconds: float) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "loss": value, "seconds": round(seconds, 1)}) + "\n")


def _save(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor], step: int
) -> None:
    temporary = path.with_suffix(".tmp")
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "step": step,
    }
    torch.save(state, temporary)
    temporary.replace(path)


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    for mean, saved in zip(average, state["average"], strict=True):
        mean.copy_(saved)
    return int(state["step"])
