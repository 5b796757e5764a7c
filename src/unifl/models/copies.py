"""Roles as whole networks, for full fine-tuning and for generators that only draw."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from unifl.errors import UserError
from unifl.models.roles import START_ROLES, STUDENT, Roles


class CopyRoles(Roles):
    """The pipeline's own networks for the student, frozen copies of the trained ones for the others."""

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        *,
        trained: Sequence[str] = (),
        frozen: Sequence[str] = (),
    ) -> None:
        """Freezes everything but the trained components.

        Args:
            components: All networks.
            trained: Names of those that train; none for a generator that only draws, whose roles are all one.
            frozen: Paths (component.path) within them that stay frozen, because nothing reads their output.
        """
        super().__init__(components)
        self._trained = tuple(trained)
        self._frozen = tuple(f"{path}." for path in frozen)
        self._copies: dict[str, dict[str, nn.Module]] = {}
        for module in components.values():
            module.requires_grad_(False)
        for parameter in self.parameters(STUDENT).values():
            parameter.requires_grad_(True)
        self._versions = self._student_versions()

    def module(self, component: str, role: str) -> nn.Module:
        """The copy of a role, or the network that all roles share."""
        return self._copies.get(role, self.components).get(component, self.components[component])

    def trains(self, component: str) -> bool:
        """Whether the component was chosen for training."""
        return component in self._trained

    def parameters(self, role: str) -> dict[str, Parameter]:
        """All weights of the trained components in a role, {component.path: parameter}."""
        return {
            f"{component}.{name}": parameter
            for component in self._trained
            for name, parameter in self.module(component, role).named_parameters()
            if not f"{component}.{name}".startswith(self._frozen)
        }

    @property
    def num_copies(self) -> int:
        """One for reference and teacher together, one for each other role."""
        return len({id(networks) for networks in self._copies.values()})

    def _make(self, role: str) -> None:
        if not self._trained:
            return
        made = [other for other in START_ROLES if other in self._copies] if role in START_ROLES else []
        if made:
            self._copies[role] = self._copies[made[0]]
            return
        if role in START_ROLES and self._student_versions() != self._versions:
            raise UserError(
                f"the {role} is a copy of the model before training, and training has already changed it; "
                f'call roles.add("{role}") before the first step'
            )
        self._copies[role] = {
            name: copy.deepcopy(self.components[name]).requires_grad_(False) for name in self._trained
        }

    def _switch(self, role: str) -> None:
        """Nothing to do: every role has networks of its own."""

    def _outside(self, component: str) -> str:
        return f"{component} was not chosen for training; freeze it, or choose it in the training settings"

    def _student_versions(self) -> list[int]:
        """Counts of in-place changes, as torch keeps them for every tensor."""
        return [parameter._version for parameter in self.parameters(STUDENT).values()]
