"""Roles as LoRA adapters on shared base weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import Parameter

from unifl.models.roles import START_ROLES, STUDENT, Roles

START_ADAPTER = "start"
"""Name of the adapter that holds the LoRA which the user started from."""


class AdapterRoles(Roles):
    """Every role is a list of adapters: none for the reference, one for the student, one for its ema.

    Where the user started from a LoRA, that one comes first in every list, the reference's too.
    """

    def __init__(
        self, components: Mapping[str, nn.Module], configs: Mapping[str, LoraConfig], *, seed: int = 0
    ) -> None:
        """Adds the student's adapter and freezes everything else.

        Args:
            components: All networks; the LoRA which the user started from is already on them, if there is one,
                under the name `START_ADAPTER`.
            configs: The student's adapter for every component that trains.
            seed: Decides the first values of the adapter: the same in every process and after a resume.
        """
        super().__init__(components)
        self._configs = dict(configs)
        self._seed = seed
        self._start = {
            name: [START_ADAPTER]
            for name, module in components.items()
            if START_ADAPTER in (getattr(module, "peft_config", None) or {})
        }
        self._layers: dict[str, list[BaseTunerLayer]] = {}
        for module in components.values():
            module.requires_grad_(False)
        self._add_adapter(STUDENT, trainable=True)
        self._switch(STUDENT)

    def module(self, component: str, role: str) -> nn.Module:
        """The one network of the component."""
        return self.components[component]

    def trains(self, component: str) -> bool:
        """Whether the student has an adapter there."""
        return component in self._configs

    def parameters(self, role: str) -> dict[str, Parameter]:
        """The adapter of a role, {component.path.lora_A.weight: parameter}; nothing for start roles."""
        if role in START_ROLES:
            return {}
        found: dict[str, Parameter] = {}
        for component in self._configs:
            for name, parameter in self.components[component].named_parameters():
                path = name.split(".")
                if role in path and "lora" in path[path.index(role) - 1]:
                    path.remove(role)
                    found[".".join([component, *path])] = parameter
        return found

    def adapters(self, component: str, role: str) -> list[str]:
        """Adapters of a component that are on in a role, in the order in which they are added up."""
        own = [role] if component in self._configs and role not in START_ROLES else []
        return self._start.get(component, []) + own

    @property
    def num_copies(self) -> int:
        """None: all roles share the base weights."""
        return 0

    def _make(self, role: str) -> None:
        if role in START_ROLES:
            return
        self._add_adapter(role, trainable=False)
        student = self.parameters(STUDENT)
        with torch.no_grad():
            for name, parameter in self.parameters(role).items():
                if not student[name].is_meta:  # a network of shapes has no values to copy
                    parameter.copy_(student[name])
        self._switch(self.current)

    def _add_adapter(self, name: str, *, trainable: bool) -> None:
        for component, config in self._configs.items():
            module: Any = self.components[component]
            flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                torch.manual_seed(self._seed)  # peft draws from the global generator
                module.add_adapter(copy.deepcopy(config), adapter_name=name)
            for parameter, flag in flags:
                parameter.requires_grad = flag
        self._layers = {
            component: [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
            for component, module in self.components.items()
        }
        for parameter in self.parameters(name).values():
            if parameter.element_size() < 4:  # master weights are float32 over a base in half precision
                parameter.data = parameter.data.float()
            parameter.requires_grad_(trainable)

    def _switch(self, role: str) -> None:
        # peft's own `set_adapter` and `enable_adapters` tie requires_grad to what is active: they would freeze the
        # student whenever the reference is asked, and make the user's own LoRA trainable together with the student.
        # Visiting every parameter to put the flags back costs more than a small UNet's forward pass, so the list of
        # active adapters is set directly, and peft is asked whether it took notice.
        for component, layers in self._layers.items():
            active = self.adapters(component, role)
            for layer in layers:
                layer._active_adapter = active
            if layers and layers[0].active_adapters != active:
                raise RuntimeError("this version of peft keeps its active adapters elsewhere; use peft 0.21")

    def _outside(self, component: str) -> str:
        return (
            "it lies outside the adapters: the reference is the same network with the adapters off and would change "
            "with it. Freeze it (requires_grad_(False)), or use full fine-tuning, which keeps a copy as reference"
        )
