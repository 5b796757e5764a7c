"""Watching a run: means over the global batch, gradient norms per loss term, and stopping at NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unifl.errors import TrainingStopped
from unifl.methods.base import StepOutput
from unifl.training.distributed import average_tensors, from_all


class Means:
    """Losses and metrics of one update, averaged over micro-batches and processes."""

    def __init__(self) -> None:
        self._losses: dict[str, list[float]] = {}
        self._metrics: dict[str, list[float]] = {}
        self.previews: dict[str, Tensor] = {}
        self._count = 0

    def add(self, output: StepOutput) -> None:
        """Take in one micro-batch; its pictures are kept when it is the first."""
        for name, value in output.losses.items():
            self._losses.setdefault(name, []).append(float(value.detach()))
        for name, metric in output.metrics.items():
            number = (
                float(metric.detach().cpu().double().mean()) if isinstance(metric, Tensor) else float(metric)
            )
            self._metrics.setdefault(name, []).append(number)
        if self._count == 0:
            self.previews = output.previews
        self._count += 1

    def gather(self) -> tuple[dict[str, float], dict[str, float]]:
        """Losses and metrics over all processes.

        A loss term that is missing from a micro-batch counts as 0 there, as it does in the gradient; a metric
        is averaged over the micro-batches that have it.
        """
        parts = from_all((self._losses, self._metrics, self._count))
        count = sum(part[2] for part in parts)
        losses = _joined(part[0] for part in parts)
        metrics = _joined(part[1] for part in parts)
        return (
            {name: math.fsum(values) / count for name, values in losses.items()},
            {name: math.fsum(values) / len(values) for name, values in metrics.items()},
        )


class TermGradients:
    """L2 norm of the gradient of each loss term over the global batch, for the parameters of one update."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, losses: Mapping[str, Tensor], weight: float) -> None:
        """Differentiate each term of one micro-batch; the graph is kept for the update itself.

        Args:
            losses: Scalars with a graph.
            weight: Share of the micro-batch in the mean of this process.
        """
        for name, loss in losses.items():
            if name not in self._sums:
                self._sums[name] = [torch.zeros_like(parameter) for parameter in self._parameters]
            if not loss.requires_grad:  # a constant
                continue
            gradients = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(self._sums[name], gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient, alpha=weight)

    def norms(self) -> dict[str, float]:
        """The norm of each term's gradient, averaged over processes first."""
        result = {}
        for name, total in self._sums.items():
            average_tensors(total)
            result[name] = float(torch.nn.utils.get_total_norm(total))
        return result


def require_finite(values: Mapping[str, float], *, kind: str, step: int, last: Path | None) -> None:
    """Stop the run at a number that is NaN or infinite.

    Args:
        values: Numbers by name.
        kind: What they are, for the message: "loss term", "metric", "gradient of".
        step: Training step, from 1.
        last: The last good checkpoint.

    Raises:
        TrainingStopped: One of them is not finite.
    """
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not bad:
        return
    named = ", ".join(f"{kind} {name!r} is {value}" for name, value in bad.items())
    found = f"the last good checkpoint is {last}" if last else "no checkpoint had been written before"
    raise TrainingStopped(
        f"stopped at step {step}: {named}; {found}. Nothing was saved after it. "
        "A lower learning rate, a smaller weight of that term or a check of its inputs may help"
    )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """True when no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _joined(parts: Iterable[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    joined: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.items():
            joined.setdefault(name, []).extend(values)
    return joined
