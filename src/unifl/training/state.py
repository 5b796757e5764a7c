"""Everything that training changes, written to and read from a checkpoint folder."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from unifl.errors import UserError
from unifl.methods.base import Method
from unifl.models.roles import FOLLOWING_ROLES
from unifl.training.config import TrainingConfig
from unifl.training.optimizers import build_lr_scheduler, build_optimizer
from unifl.training.statefile import load_state, save_state, state_bytes


@dataclass
class TrainingState:
    """What a run consists of beside its data.

    Attributes:
        method: The method in training.
        optimizers: One per update.
        schedulers: The learning rate of each.
        step: Training steps that are complete.
    """

    method: Method
    optimizers: dict[str, torch.optim.Optimizer]
    schedulers: dict[str, LambdaLR]
    step: int = 0

    @classmethod
    def new(cls, method: Method, config: TrainingConfig) -> TrainingState:
        """The state before the first step.

        Raises:
            UserError: Settings of optimisers that make no sense for this method.
        """
        config.check_updates(method.updates)
        if config.ema_decay is not None:
            method.generator.roles.add("ema")
        elif "ema" in method.roles:
            raise UserError(
                "this method compares with the moving average of the student, and training.ema_decay is null; set it "
                "to 0.95, or take the student itself as target"
            )
        optimizers, schedulers = {}, {}
        for update in method.updates:
            settings = config.optimizer(update)
            optimizers[update] = build_optimizer(method.parameters[update], settings)
            schedulers[update] = build_lr_scheduler(
                optimizers[update],
                settings,
                warmup_steps=config.lr_warmup_steps,
                total_steps=config.max_train_steps,
            )
        return cls(method, optimizers, schedulers)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that training changes, except those of the optimisers."""
        yield from named_parameters(self.method).values()
        for module in self.method.modules.values():
            yield from module.state_dict().values()
        for role in self._following_roles():
            yield from self.method.generator.roles.state(role).values()

    def num_bytes(self) -> int:
        """Bytes of a checkpoint, as far as tensors go."""
        optimizers = state_bytes([optimizer.state_dict() for optimizer in self.optimizers.values()])
        return sum(tensor.nbytes for tensor in self.tensors()) + optimizers

    def write(self, folder: Path) -> None:
        """Write all files of the state into a folder."""
        save_state(named_parameters(self.method), folder / "parameters.safetensors")
        modules = {name: dict(module.state_dict()) for name, module in self.method.modules.items()}
        save_state(modules, folder / "modules.safetensors")
        for role in self._following_roles():
            save_state(self.method.generator.roles.state(role), folder / f"role-{role}.safetensors")
        for update, optimizer in self.optimizers.items():
            scheduler = self.schedulers[update].state_dict()
            state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler}
            save_state(state, folder / f"optimizer-{update}.safetensors")
        save_state({"step": self.step, "method": self.method.state_dict()}, folder / "method.safetensors")

    def read(self, folder: Path) -> None:
        """Take over the state in a folder; settings of optimisers stay those of now.

        Raises:
            UserError: It belongs to another model, method or set of optimisers.
        """
        own = named_parameters(self.method)
        _copy_into(own, load_state(folder / "parameters.safetensors"), folder)
        modules = load_state(folder / "modules.safetensors")
        for name, module in self.method.modules.items():
            _copy_into(dict(module.state_dict()), modules.get(name, {}), folder)
        for role in self._following_roles():
            saved = load_state(folder / f"role-{role}.safetensors")
            self.method.generator.roles.load_state(role, saved)
        for update, optimizer in self.optimizers.items():
            state = load_state(folder / f"optimizer-{update}.safetensors")
            settings = _settings(optimizer)
            _load_optimizer(optimizer, state["optimizer"], update, folder)
            self.schedulers[update].load_state_dict(state["scheduler"])
            _restore_settings(optimizer, self.schedulers[update], settings)
        state = load_state(folder / "method.safetensors")
        self.method.load_state_dict(state["method"])
        self.step = state["step"]

    def _following_roles(self) -> list[str]:
        return [role for role in self.method.generator.roles.names if role in FOLLOWING_ROLES]


def named_parameters(method: Method) -> dict[str, nn.Parameter]:
    """Trained parameters that belong to no module of `method.modules`, under names that last.

    The generator's own names where it has one for the parameter, else "update.number".
    """
    inside = {id(parameter) for module in method.modules.values() for parameter in module.parameters()}
    names = {id(parameter): name for name, parameter in method.generator.trainable_parameters().items()}
    found = {}
    for update, parameters in method.parameters.items():
        for number, parameter in enumerate(parameters):
            if id(parameter) not in inside:
                found[names.get(id(parameter), f"{update}.{number}")] = parameter
    return found


def _copy_into(own: dict[str, Any], saved: dict[str, Tensor], folder: Path) -> None:
    differing = sorted(set(own) ^ set(saved)) or [
        name for name in own if own[name].shape != saved[name].shape
    ]
    if differing:
        raise UserError(
            f"the checkpoint {folder} does not fit this model, first at {differing[0]!r}; "
            "resume with the model, rank and target modules of the run that wrote it"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Any, update: str, folder: Path) -> None:
    entries = set(optimizer.param_groups[0])
    try:
        optimizer.load_state_dict(state)
        missing = sorted(entries.difference(optimizer.param_groups[0]))
        if missing:  # of another class; torch itself may not notice before the step
            raise KeyError(missing[0])
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the optimizer {update!r} in the checkpoint {folder} does not fit: {error}; "
            "resume with the optimizer of the run that wrote it"
        ) from error


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the optimiser was made with, for each of its groups.

    The other entries of a group are its state: Prodigy keeps its estimate of the distance there.
    """
    names = {name for cls in type(optimizer).__mro__ for name in inspect.signature(cls).parameters}
    names.add("initial_lr")  # the schedule's name for the peak
    groups = optimizer.param_groups
    return [{name: value for name, value in group.items() if name in names} for group in groups]


def _restore_settings(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, settings: list[dict[str, Any]]
) -> None:
    """Put settings back over those that came with a checkpoint, and the learning rate to where they want it now."""
    for group, own, factor in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
        group.update(own)
        # as the scheduler itself computes it, so that an unchanged run goes on bit for bit
        group["lr"] = own["initial_lr"] * factor(scheduler.last_epoch)
    scheduler.base_lrs = [own["initial_lr"] for own in settings]
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
