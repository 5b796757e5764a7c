"""What a run will cost, said before it starts."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from unifl.errors import UserError
from unifl.methods.base import Method, MicroBatch
from unifl.training.batches import Layout, draw_micro_batches, seed_stray_draws
from unifl.training.config import TrainingConfig
from unifl.training.memory import measure_peak, optimizer_bytes
from unifl.training.statefile import state_bytes


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        steps: Training steps.
        rows: Rows per training step over all processes.
        evaluations: Samples through each kind of network per training step over all processes, exact.
        trained: Number of trained parameters per update.
        copies: Copies of the backbone beside the pipeline's own.
        memory: Bytes on one process by part: weights of all networks and roles, optimisers, gradients and
            activations (the most at any one time).
        available: Bytes that are free on the device now.
    """

    steps: int
    rows: int
    evaluations: dict[str, float]
    trained: dict[str, int]
    copies: int
    memory: dict[str, int]
    available: int

    @property
    def total_memory(self) -> int:
        """Bytes of all parts together."""
        return sum(self.memory.values())

    def table(self) -> Table:
        """The plan for people."""
        table = Table("what", "how much", title="Plan", title_justify="left")
        table.add_row("training steps", f"{self.steps:,} of {self.rows} rows")
        for update, count in self.trained.items():
            table.add_row(f"trained parameters, {update}", f"{count:,}")
        table.add_row("copies of the backbone", str(self.copies))
        for name, samples in self.evaluations.items():
            table.add_row(f"{name}, samples per step", f"{samples:,.6g}")
        for name, size in self.memory.items():
            table.add_row(f"memory, {name}", _readable(size))
        table.add_row(
            "memory, together", f"{_readable(self.total_memory)} ({_readable(self.available)} free)"
        )
        table.add_row("time", "shown after the first steps")
        return table

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        (console or Console()).print(self.table())


def plan(method: Method, config: TrainingConfig, *, processes: int = 1) -> Plan:
    """Find out what a run will cost, by a dry run of one micro-batch.

    The dry run computes gradients and takes no optimiser's step; running statistics and buffers are put back.
    The role "ema" is added where the settings ask for it, as training does.

    Args:
        method: What will train.
        config: How.
        processes: Number of processes of the run.

    Raises:
        UserError: A micro-batch does not fit into the memory of the GPU, or the settings make no sense.
    """
    config.check_updates(method.updates)
    layout = Layout(
        micro_batch=config.train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        processes=processes,
    )
    roles = method.generator.roles
    if config.ema_decay is not None:
        roles.add("ema")
    device = method.parameters[method.updates[0]][0].device
    pieces = layout.accumulation * layout.processes
    per_micro_batch = method.evaluations(layout.micro_batch)
    weights, peak = _dry_run(method, config, layout, device)
    return Plan(
        steps=config.max_train_steps,
        rows=layout.global_batch,
        evaluations={kind: count * pieces for kind, count in per_micro_batch.items()},
        trained={u: sum(p.numel() for p in method.parameters[u]) for u in method.updates},
        copies=roles.num_copies,
        memory={
            "weights": weights,
            "optimizers": sum(
                optimizer_bytes(method.parameters[u], config.optimizer(u)) for u in method.updates
            ),
            "gradients and activations": peak,
        },
        available=_available(device),
    )


def _dry_run(method: Method, config: TrainingConfig, layout: Layout, device: torch.device) -> tuple[int, int]:
    """Bytes of weights, and the most bytes of gradients and activations at one time."""
    scratch = 0

    def work() -> None:
        nonlocal scratch
        # the rows are drawn inside, so that they count
        batch = draw_micro_batches(method, Layout(layout.micro_batch, 1), seed=config.seed, step=0)[0]
        for update in method.updates:
            _gradients(method, update, batch, accumulating=layout.accumulation > 1)
        scratch = state_bytes(batch.scratch)

    try:
        with _left_as_found(method):
            peak = measure_peak(work, _known_tensors(method), device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"one micro-batch of {layout.micro_batch} rows does not fit into the memory of the GPU; lower "
            "train_batch_size (and raise gradient_accumulation_steps), or turn on gradient checkpointing"
        ) from error
    return peak.before, peak.added + scratch * (layout.accumulation - 1)


def _gradients(method: Method, update: str, batch: MicroBatch, *, accumulating: bool) -> None:
    """Gradients of one update, dropped at its end as the loop does."""
    parameters = method.parameters[update]
    if accumulating:  # from the second micro-batch on, a forward pass finds all gradients there
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    seed_stray_draws(batch.key, update)
    output = method.step(update, batch)
    if output.losses:
        sum(output.losses.values(), torch.zeros((), device=parameters[0].device)).backward(inputs=parameters)
    for parameter in parameters:
        parameter.grad = None


@contextmanager
def _left_as_found(method: Method) -> Iterator[None]:
    """Puts back what a step changes beside weights: running statistics, buffers, random state, gradients."""
    state = copy.deepcopy(method.state_dict())
    buffers = [b for module in method.modules.values() for b in module.buffers()]
    saved = [buffer.clone() for buffer in buffers]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            method.load_state_dict(state)
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
            for parameters in method.parameters.values():
                for parameter in parameters:
                    parameter.grad = None


def _known_tensors(method: Method) -> Iterator[Tensor]:
    """Weights and buffers that are held whether or not a step touches them."""
    roles = method.generator.roles
    networks = [*method.generator.modules().values(), *method.modules.values()]
    networks += [roles.module(component, role) for component in roles.components for role in roles.names]
    for network in networks:
        yield from network.parameters()
        yield from network.buffers()


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
