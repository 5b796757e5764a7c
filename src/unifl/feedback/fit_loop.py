"""The loop in which reward networks are fitted, whatever they are fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.fit_config import FitConfig, FitRow
from unifl.feedback.meta_reward import meta_gradient
from unifl.randomness import Key


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on while a network is fitted.

    Attributes:
        measured: Called with every measurement.
        stepped: Called with the number of every finished step.
        keep: Called after a measurement with a state from which the fit goes on to the same result.
        state: Such a state, or None to start.
    """

    measured: Callable[[FitRow], None] | None = None
    stepped: Callable[[int], None] | None = None
    keep: Callable[[dict[str, Any]], None] | None = None
    state: dict[str, Any] | None = None


def run_fit(
    network: nn.Module,
    loss: Callable[[int], Float[Tensor, ""]],
    measure: Callable[[], tuple[float, float]],
    *,
    config: FitConfig,
    watch: Watch,
    spread: Callable[[int], Float[Tensor, ""]] | None = None,
) -> tuple[list[FitRow], FitRow]:
    """Train in place, and leave the network in eval mode with the weights that were chosen.

    Args:
        network: Its parameters with `requires_grad` are trained.
        loss: That of a step, counted from 1; it draws its rows from the number of the step.
        measure: Held-out loss and accuracy.
        config: Settings.
        watch: Who looks on.
        spread: Of the rewards of samples of the policy, for MetaRM (`unifl.feedback.meta_reward`).

    Returns:
        Measurements, and the one whose weights remain.

    Raises:
        UserError: Nothing to train, or a loss that is not finite.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("the reward network has no trainable parameter; unfreeze some before fitting it")
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    start, history, best, weights, recent = 0, [], None, {}, []
    if watch.state is None:
        best = _measured(network, 0, math.nan, measure)
        history, weights = [best], _moving(network)
    else:
        start, history, best, weights = _restore(watch.state, network, optimizer)
    for step in range(start + 1, config.steps + 1):
        network.train()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step - 1, config)
        optimizer.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]):  # dropout is drawn anew by every step, and by no other
            torch.manual_seed(Key(config.seed, step, ()).shared_integer("fit/dropout", 0, 2**31))
            recent.append(_backward(parameters, step, loss, spread, config.meta_step))
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        if step % config.evaluate_every == 0 or step == config.steps:
            history.append(_measured(network, step, _mean(recent, step), measure))
            recent = []
            if not config.keep_best or history[-1].held_out_loss <= best.held_out_loss:
                best, weights = history[-1], _moving(network)
            if watch.measured is not None:  # first: a resume drops what was told beyond its state
                watch.measured(history[-1])
            if watch.keep is not None:
                watch.keep(_state(step, network, optimizer, history, best, weights))
        if watch.stepped is not None:
            watch.stepped(step)
    network.load_state_dict(weights, strict=False)
    network.eval()
    return history, best


def _backward(
    parameters: list[nn.Parameter],
    step: int,
    loss: Callable[[int], Tensor],
    spread: Callable[[int], Tensor] | None,
    eta: float,
) -> float:
    if spread is not None:
        _, value = meta_gradient(parameters, lambda: spread(step), lambda: loss(step), eta)
        return float(value)
    value = loss(step)
    value.backward()
    return float(value.detach())


def _mean(losses: list[float], step: int) -> float:
    mean = sum(losses) / len(losses)
    if not math.isfinite(mean):
        raise UserError(f"the loss of the fit is {mean} by step {step}; lower its learning_rate")
    return mean


def _measured(
    network: nn.Module, step: int, loss: float, measure: Callable[[], tuple[float, float]]
) -> FitRow:
    network.eval()
    with torch.no_grad():
        return FitRow(step, loss, *measure())


def _moving(network: nn.Module) -> dict[str, Tensor]:
    """A copy of what training changes: everything but frozen parameters."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    state = network.state_dict()
    return {name: value.detach().clone() for name, value in state.items() if name not in frozen}


def _state(
    step: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[FitRow],
    best: FitRow,
    weights: dict[str, Tensor],
) -> dict[str, Any]:
    return {
        "step": step,
        "network": _moving(network),
        "optimizer": optimizer.state_dict(),
        "history": [asdict(row) for row in history],
        "best": history.index(best),
        "weights": weights,
    }


def _restore(
    state: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[FitRow], FitRow, dict[str, Tensor]]:
    network.load_state_dict(state["network"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    history = [FitRow(**row) for row in state["history"]]
    return state["step"], history, history[state["best"]], state["weights"]


def _rate(step: int, config: FitConfig) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
