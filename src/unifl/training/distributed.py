"""Several processes, by hand: average the gradients, share the numbers, agree on when to stop.

DistributedDataParallel is not used. It wraps one module and one forward call, whereas a step here runs the same
backbone several times under several roles, parts of it without gradient, parts recomputed, with several
optimisers in turn. Averaging once per update, after all micro-batches, is exact for all of that, needs no
`no_sync`, and costs the same traffic; what is lost is the overlap of communication with the backward pass.
"""

from __future__ import annotations

import atexit
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor, nn

BUCKET_BYTES = 32 * 2**20
"""Gradients are sent in flat pieces of about this size: few messages, little extra memory."""


def num_processes() -> int:
    """How many processes train together: more than one under `accelerate launch` or `torchrun`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def several_processes() -> bool:
    """True where more than one process trains."""
    return num_processes() > 1


def close_at_exit() -> None:
    """Leave the group of processes before the interpreter ends.

    Threads of the group that still run while the interpreter is taken down abort a process whose work is done.
    """
    if several_processes():
        atexit.unregister(_close)  # one call is enough, however many runs a program makes
        atexit.register(_close)


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes.

    A parameter that has a gradient on some process gets one on every process (zero where it had none, as the
    loss there does not depend on it); one that has none anywhere keeps none, so that the optimiser leaves it
    alone exactly as it would on one process.

    Args:
        parameters: The same ones in the same order on every process.
    """
    if not several_processes() or not parameters:
        return
    device = parameters[0].device
    present = torch.tensor([parameter.grad is not None for parameter in parameters], device=device).int()
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    used = [parameter for parameter, here in zip(parameters, present.tolist(), strict=True) if here]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    _average([parameter.grad for parameter in used if parameter.grad is not None])


def average_tensors(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    if several_processes():
        _average(tensors)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Give every process the values that the first one has, in place."""
    if several_processes():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def from_all(value: Any) -> list[Any]:
    """What every process passed here, in the order of their ranks."""
    return gather_object([value]) if several_processes() else [value]


def any_process(flag: bool) -> bool:
    """True on every process when it is true on one of them."""
    return any(from_all(flag))


def _average(tensors: Sequence[Tensor]) -> None:
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        pieces = flat.split([tensor.numel() for tensor in bucket])
        for tensor, piece in zip(bucket, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type and device, up to `BUCKET_BYTES` together."""
    groups: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.dtype, tensor.device].append(tensor)
    for group in groups.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in group:
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket
