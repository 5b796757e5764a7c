"""What a run will cost, said before it starts."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.methods.base import Method, MicroBatch
from unifl.models.adapters import AdapterRoles
from unifl.models.roles import STUDENT
from unifl.models.user import UserRoles
from unifl.training.batches import Layout, draw_micro_batches, seed_stray_draws
from unifl.training.config import TrainingConfig
from unifl.training.memory import LiveBytes, measure_peak, optimizer_bytes
from unifl.training.stand_in import has_shapes_only, stand_ins
from unifl.training.statefile import state_bytes

Parts = Mapping[str, Sequence[nn.Module]]
"""Networks by the name under which a plan lists them."""


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        steps: Training steps.
        rows: Rows per training step over all processes.
        evaluations: Samples through each kind of network per training step over all processes, exact.
        trained: Number of trained parameters per update.
        copies: Copies of the backbone beside the pipeline's own.
        memory: Bytes on one process by part: weights of each network and role, optimisers, gradients and
            activations (the most at any one time).
        gradients: Bytes of the gradients of the largest update, which are within the last of those.
        activations: Bytes that autograd keeps for backward, without weights, by the network in which they were made;
            of several updates the most. They are within gradients and activations, too.
        available: Bytes that are free on the device now; None where the networks have shapes and no weights, so
            that the run will be on another machine.
    """

    steps: int
    rows: int
    evaluations: dict[str, float]
    trained: dict[str, int]
    copies: int
    memory: dict[str, int]
    gradients: int
    activations: dict[str, int]
    available: int | None

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
        table.add_row("  of these, gradients", _readable(self.gradients))
        for name, size in self.activations.items():
            table.add_row(f"  of these, kept for backward: {name}", _readable(size))
        free = "" if self.available is None else f" ({_readable(self.available)} free)"
        table.add_row("memory, together", f"{_readable(self.total_memory)}{free}")
        if self.available is not None:
            table.add_row("time", "shown after the first steps")
        return table

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        (console or Console()).print(self.table())


def plan(
    method: Method,
    config: TrainingConfig,
    *,
    processes: int = 1,
    feedback: Parts | None = None,
    for_gpu: bool = False,
) -> Plan:
    """Find out what a run will cost, by a dry run of one micro-batch.

    The dry run computes gradients and takes no optimiser's step; running statistics and buffers are put back.
    The role "ema" is added where the settings ask for it, as training does. A generator of shapes without weights
    (`unifl.models.shapes`) is planned in the same way, with stand-ins for its networks.

    Args:
        method: What will train.
        config: How.
        processes: Number of processes of the run.
        feedback: Frozen networks of rewards and critics by the name under which to list them.
        for_gpu: Whether a run of shapes is meant for a GPU, see `stand_ins`.

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
    networks = method.generator.modules()
    shapes_only = any(has_shapes_only(network) for network in networks.values())
    with stand_ins(networks, roles, for_gpu=for_gpu):
        weights, peak, activations = _dry_run(method, config, layout, device, feedback or {})
    gradients = [sum(p.nbytes for p in method.parameters[update]) for update in method.updates]
    return Plan(
        steps=config.max_train_steps,
        rows=layout.global_batch,
        evaluations={kind: count * pieces for kind, count in per_micro_batch.items()},
        trained={u: sum(p.numel() for p in method.parameters[u]) for u in method.updates},
        copies=roles.num_copies,
        memory={
            **{f"weights, {part}": size for part, size in weights.items()},
            "optimizers": sum(
                optimizer_bytes(method.parameters[u], config.optimizer(u)) for u in method.updates
            ),
            "gradients and activations": peak,
        },
        gradients=max(gradients),
        activations=dict(activations),
        available=None if shapes_only else _available(device),
    )


def _dry_run(
    method: Method, config: TrainingConfig, layout: Layout, device: torch.device, feedback: Parts
) -> tuple[dict[str, int], int, Counter[str]]:
    """Bytes of weights by part, the most bytes of gradients and activations, and what autograd keeps by part."""
    scratch = 0
    activations: Counter[str] = Counter()

    def work(watch: LiveBytes) -> None:
        nonlocal scratch, activations
        # the rows are drawn inside, so that they count
        batch = draw_micro_batches(method, Layout(layout.micro_batch, 1), seed=config.seed, step=0)[0]
        for update in method.updates:
            _gradients(method, update, batch, accumulating=layout.accumulation > 1)
            activations |= watch.take_saved()  # updates come one after the other: the larger of both
        scratch = state_bytes(batch.scratch)

    try:
        with _left_as_found(method):
            known = _known_tensors(method, feedback)
            peak = measure_peak(work, known, device, _parts(method, feedback))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"one micro-batch of {layout.micro_batch} rows does not fit into the memory of the GPU; lower "
            "train_batch_size (and raise gradient_accumulation_steps), or turn on gradient checkpointing"
        ) from error
    return peak.before, peak.added + scratch * (layout.accumulation - 1), activations


def _gradients(method: Method, update: str, batch: MicroBatch, *, accumulating: bool) -> None:
    """Gradients of one update, dropped at its end as the loop does."""
    parameters = method.parameters[update]
    if accumulating:  # from the second micro-batch on, a forward pass finds all gradients there
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    seed_stray_draws(batch.key, update)
    output = method.step(update, batch)
    if output.losses:
        torch.stack(list(output.losses.values())).sum().backward(inputs=parameters)
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


def _known_tensors(method: Method, feedback: Parts) -> dict[str, list[Tensor]]:
    """Weights and buffers by part, whether or not a step touches them; the first part that has one counts it."""
    generator, roles = method.generator, method.generator.roles
    known: dict[str, list[Tensor]] = {}
    if isinstance(roles, AdapterRoles | UserRoles):
        name = "LoRA" if isinstance(roles, AdapterRoles) else "user adapter"
        known[name] = list(roles.parameters(STUDENT).values())
        for role in roles.names[1:]:
            known[role] = list(roles.parameters(role).values())
    for name, network in generator.modules().items():
        known[name] = _tensors(network)
    if not isinstance(roles, AdapterRoles | UserRoles):
        for role in roles.names[1:]:
            copies = [roles.module(component, role) for component in roles.components]
            known[role] = [tensor for network in copies for tensor in _tensors(network)]
    for name, modules in {**{n: [m] for n, m in method.modules.items()}, **feedback}.items():
        known[name] = [tensor for module in modules for tensor in _tensors(module)]
    return known


def _parts(method: Method, feedback: Parts) -> dict[str, list[nn.Module]]:
    """Modules whose calls are told apart: those of the generator by what they do, and all that judge."""
    generator, roles = method.generator, method.generator.roles
    parts: dict[str, list[nn.Module]] = {}
    for component in roles.components:
        name = "text encoders" if component.startswith("text_encoder") else "denoiser"
        parts.setdefault(name, []).extend(roles.module(component, role) for role in roles.names)
    for name, network in generator.modules().items():
        if name == "vae":
            parts["decoder"] = [network.post_quant_conv, network.decoder]
    for name, module in method.modules.items():
        # a discriminator that lends its judgement to the generator is called by its network
        parts[name] = [module, *module.children()]
    for name, modules in feedback.items():
        parts[name] = list(modules)
    return {name: [m for m in dict.fromkeys(modules) if m is not None] for name, modules in parts.items()}


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
