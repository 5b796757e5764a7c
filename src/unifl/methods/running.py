"""Statistics that a method carries from one training step to the next."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class StepMean:
    """The mean of a number over all rows of the training step before.

    It depends neither on how a batch is cut up nor on the number of processes: what a step reads was settled by the
    step before.

    Attributes:
        value: The mean; None before the first step has ended.
        steps: Training steps that have ended.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self.steps = 0
        self._step: int | None = None
        self._sum, self._number = 0.0, 0

    def enter(self, step: int) -> None:
        """Begin a micro-batch of a training step; that of another step ends the one before."""
        if self._step is not None and step != self._step and self._number:
            self.value = self._sum / self._number
            self.steps += 1
            self._sum, self._number = 0.0, 0
        self._step = step

    def add(self, values: Float[Tensor, " n"]) -> None:
        """Take in the rows of a micro-batch, and those of all other processes."""
        pair = torch.stack([values.detach().double().sum(), values.new_tensor(float(len(values))).double()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(pair)
        self._sum += float(pair[0])
        self._number += int(pair[1])

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "value": self.value,
            "steps": self.steps,
            "step": self._step,
            "sum": self._sum,
            "number": self._number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.value, self.steps = state["value"], state["steps"]
        self._step, self._sum, self._number = state["step"], state["sum"], state["number"]
