"""Memory of a training step: live bytes of a dry run, and the state that an optimiser will hold."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unifl.training.config import OptimizerConfig
from unifl.training.optimizers import build_optimizer
from unifl.training.statefile import state_bytes

OTHER = "other"
"""The part of what belongs to no named part: feedback that is no network, losses."""


@dataclass(frozen=True)
class Peak:
    """Bytes found by a dry run.

    Attributes:
        before: Held before it began, and known or used, by part: weights, buffers, cached encodings.
        added: The most that was held on top of that at any one time.
    """

    before: dict[str, int]
    added: int


class LiveBytes(TorchDispatchMode):
    """Follows the storages of all tensors that operations read and write, and those that autograd keeps.

    Storages that appear are added, storages that die are taken off. Scratch space inside an operation is not seen,
    and the memory of the process itself (libraries, files) is not counted.

    Attributes:
        before: Bytes that were there before: known, or read without having been written.
        now: Bytes that were written since then and are alive.
        peak: The most of them so far.
        aside: Bytes that count as alive although they are gone; set by whoever lets them go.
        peak_with_aside: The most of both together so far.
        saved: Bytes that autograd keeps for backward, without weights, by the part in which they were made.
    """

    def __init__(
        self, known: Iterable[Tensor] = (), parts: Mapping[str, Sequence[nn.Module]] | None = None
    ) -> None:
        """Watches while it is entered.

        Args:
            known: Tensors to count as held before, even if nothing touches them.
            parts: Modules by the name under which `saved` counts what is kept while they run.
        """
        super().__init__()
        self.before = self.now = self.peak = 0
        self.aside = self.peak_with_aside = 0
        self.saved: Counter[str] = Counter()
        self._parts = parts or {}
        self._inside = [OTHER]
        self._alive: dict[int, Any] = {}
        self._unsaved: set[int] = set()
        self._scope = ExitStack()
        for tensor in known:
            self.before += self._new_bytes(tensor)

    def __enter__(self) -> LiveBytes:
        """Watch operations, autograd and the modules of the parts."""
        self._scope.enter_context(saved_tensors_hooks(self._pack, lambda tensor: tensor))
        for part, modules in self._parts.items():
            for module in modules:
                self._label(module, part)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop watching."""
        super().__exit__(*error)
        self._scope.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._alive:
                self.before += self._new_bytes(tensor)
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.now += self._new_bytes(tensor, frees=True)
        self.peak = max(self.peak, self.now)
        self.peak_with_aside = max(self.peak_with_aside, self.now + self.aside)
        return output

    def take_saved(self) -> Counter[str]:
        """What was saved since the last call, by part."""
        taken, self.saved = self.saved, Counter()
        return taken

    def _label(self, module: nn.Module, part: str) -> None:
        def enter(*_: Any) -> None:
            self._inside.append(part)

        def leave(*_: Any) -> None:
            self._inside.pop()

        self._scope.callback(module.register_forward_pre_hook(enter).remove)
        self._scope.callback(module.register_forward_hook(leave, always_call=True).remove)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata in self._unsaved:  # made since the watch began, and counted once
            self._unsaved.remove(storage._cdata)
            self.saved[self._inside[-1]] += storage.nbytes()
        return tensor

    def _new_bytes(self, tensor: Tensor, *, frees: bool = False) -> int:
        """Bytes of a tensor's storage when it is seen for the first time, else 0."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return 0
        # no function of its own for each storage: tests check types, and would wrap each one anew
        self._alive[address] = weakref.ref(storage, partial(self._forget, address, size if frees else 0))
        if frees:
            self._unsaved.add(address)
        return size

    def _forget(self, address: int, freed: int, _: Any) -> None:
        del self._alive[address]
        self._unsaved.discard(address)
        self.now -= freed


def measure_peak(
    work: Callable[[LiveBytes], Any],
    known: Mapping[str, Iterable[Tensor]],
    device: torch.device,
    parts: Mapping[str, Sequence[nn.Module]] | None = None,
) -> Peak:
    """Run something and find the most memory that its tensors took at once.

    On a GPU the allocator keeps the figures; on the CPU they are those of `LiveBytes`.

    Args:
        work: What to run; gets the watch, whose `saved` counts what autograd keeps.
        known: Tensors to count as held before, by part; one that is in several parts counts in the first.
        device: Where the tensors live.
        parts: See `LiveBytes`.
    """
    before: dict[str, int] = {}
    storages: set[int] = set()
    every = [(part, tensor) for part, tensors in known.items() for tensor in tensors]
    for part, tensor in every:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages.add(storage._cdata)
            before[part] = before.get(part, 0) + storage.nbytes()
    watch = LiveBytes((tensor for _, tensor in every), parts)
    if device.type != "cuda":
        with watch:
            work(watch)
        held, added = watch.before, watch.peak
    else:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        with watch:
            work(watch)
        torch.cuda.synchronize(device)
        added = torch.cuda.max_memory_allocated(device) - held
    before[OTHER] = max(0, held - sum(before.values()))
    return Peak({part: size for part, size in before.items() if size}, added)


def optimizer_bytes(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> int:
    """Bytes of state that an optimiser will hold, found by one step on a stand-in for each shape.

    Args:
        parameters: What it will train.
        config: Its settings; `learning_rate` must be set.
    """
    kinds = Counter((tuple(p.shape), p.dtype, p.device) for p in parameters)
    total = 0
    for (shape, dtype, device), count in kinds.items():
        place = torch.device("cpu") if device.type == "meta" else device  # a shape alone takes no step
        stand_in = nn.Parameter(torch.zeros(shape, dtype=dtype, device=place))
        stand_in.grad = torch.zeros_like(stand_in)
        optimizer = build_optimizer([stand_in], replace(config, learning_rate=config.learning_rate or 1e-4))
        optimizer.step()
        total += count * state_bytes(optimizer.state_dict()["state"])
    return total
