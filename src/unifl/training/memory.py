"""Memory of a training step: live bytes of a dry run, and the state that an optimiser will hold."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unifl.training.config import OptimizerConfig
from unifl.training.optimizers import build_optimizer
from unifl.training.statefile import state_bytes


@dataclass(frozen=True)
class Peak:
    """Bytes found by a dry run.

    Attributes:
        before: Held before it began, and known or used: weights, buffers, cached encodings.
        added: The most that was held on top of that at any one time.
    """

    before: int
    added: int


def measure_peak(work: Callable[[], Any], known: Iterable[Tensor], device: torch.device) -> Peak:
    """Run something and find the most memory that its tensors took at once.

    On a GPU the allocator keeps the figures. On the CPU every operation is watched: storages that appear are
    added, storages that die are taken off. Scratch space inside an operation is not seen there, and the memory
    of the process itself (libraries, files) is not counted.

    Args:
        work: What to run.
        known: Tensors to count as held before, even if `work` does not touch them.
        device: Where the tensors live.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return Peak(before, torch.cuda.max_memory_allocated(device) - before)
    watch = _LiveBytes(known)
    with watch:
        work()
    return Peak(watch.before, watch.peak)


def optimizer_bytes(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> int:
    """Bytes of state that an optimiser will hold, found by one step on a stand-in for each shape.

    Args:
        parameters: What it will train.
        config: Its settings; `learning_rate` must be set.
    """
    kinds = Counter((tuple(p.shape), p.dtype, p.device) for p in parameters)
    total = 0
    for (shape, dtype, device), count in kinds.items():
        stand_in = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        stand_in.grad = torch.zeros_like(stand_in)
        optimizer = build_optimizer([stand_in], replace(config, learning_rate=config.learning_rate or 1e-4))
        optimizer.step()
        total += count * state_bytes(optimizer.state_dict()["state"])
    return total


class _LiveBytes(TorchDispatchMode):
    """Follows the storages of all tensors that operations read and write."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.before = self.peak = self._now = 0
        self._alive: dict[int, Any] = {}
        for tensor in known:
            self.before += self._new_bytes(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.before += self._new_bytes(tensor)
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                size = self._new_bytes(tensor, frees=True)
                self._now += size
        self.peak = max(self.peak, self._now)
        return output

    def _new_bytes(self, tensor: Tensor, *, frees: bool = False) -> int:
        """Bytes of a tensor's storage when it is seen for the first time, else 0."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return 0

        def forget(_: Any) -> None:
            del self._alive[address]
            if frees:
                self._now -= size

        self._alive[address] = weakref.ref(storage, forget)
        return size
