"""Optimisers by name or dotted path, and the course of their learning rate."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from unifl.errors import UserError, nearest
from unifl.training.config import OptimizerConfig

OPTIMIZERS = {
    "adamw": "torch.optim:AdamW",
    "adam": "torch.optim:Adam",
    "sgd": "torch.optim:SGD",
    "adafactor": "torch.optim:Adafactor",
    "muon": "torch.optim:Muon",
    "adamw8bit": "bitsandbytes.optim:AdamW8bit",
    "lion8bit": "bitsandbytes.optim:Lion8bit",
    "prodigy": "prodigyopt:Prodigy",
}
"""Short names, and where the class is. Anything else is reached by its dotted path."""


def build_optimizer(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make an optimiser.

    Args:
        parameters: What it trains.
        config: Its settings; `learning_rate` must be set.

    Returns:
        The optimiser, without state yet.

    Raises:
        UserError: An unknown name, a package that is not installed, arguments that the class does not take,
            or parameters that it cannot train.
    """
    if not parameters:
        raise UserError(
            "there is nothing to train: the update has no parameters; check its weights and modes"
        )
    frozen = sum(not parameter.requires_grad for parameter in parameters)
    if frozen:
        raise UserError(
            f"{frozen} of {len(parameters)} parameters of an update are frozen; unfreeze or omit them"
        )
    if config.kind == "muon":
        _require_matrices(parameters)
    cls = optimizer_class(config.kind)
    try:
        optimizer = cls(parameters, lr=config.learning_rate, **config.kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {config.kind!r} refuses its settings {config.kwargs}: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{config.kind!r} is not a torch optimiser; name a subclass of torch.optim.Optimizer")
    return optimizer


def optimizer_class(kind: str) -> type:
    """The class behind a name or a dotted path "package.module:Class".

    Raises:
        UserError: There is no such name, package or class.
    """
    path = OPTIMIZERS.get(kind, kind)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        guess = nearest(kind, OPTIMIZERS)
        hint = f"did you mean {guess!r}?" if guess else f"names: {', '.join(OPTIMIZERS)}"
        raise UserError(f"unknown optimizer {kind!r}; {hint} A class is reached by 'package.module:Class'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        package = module_name.split(".")[0]
        raise UserError(
            f"optimizer {kind!r} needs the package {package}, which cannot be imported ({error}); "
            f"install it with: pip install {package}"
        ) from error
    if class_name not in vars(module):
        raise UserError(f"{module_name} has no class {class_name!r}; check optimizer {kind!r}")
    return vars(module)[class_name]


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, *, warmup_steps: int, total_steps: int
) -> LambdaLR:
    """The course of one optimiser's learning rate, stepped once per training step.

    Args:
        optimizer: Its optimiser.
        config: Its settings; `lr_scheduler` must be set.
        warmup_steps: Training steps of linear rise from 0; "constant" with a warm-up becomes
            "constant_with_warmup".
        total_steps: Training steps of the run.

    Returns:
        A scheduler from `diffusers.optimization`.
    """
    name = config.lr_scheduler or "constant"
    if name == "constant" and warmup_steps > 0:
        name = "constant_with_warmup"
    return get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)


def _require_matrices(parameters: Sequence[nn.Parameter]) -> None:
    """Muon orthogonalises matrices and is not defined for anything else."""
    others = sum(parameter.ndim != 2 for parameter in parameters)
    if others:
        raise UserError(
            f"optimizer 'muon' trains matrices only, and {others} of {len(parameters)} parameters are none; "
            "train LoRA on linear layers (target_modules to_q, to_k, to_v, to_out.0), or choose adamw"
        )
