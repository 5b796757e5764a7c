"""Roles: named weight sets over one backbone.

A *role* says whose weights an evaluation uses: `student` (the weights that train), `reference` and `teacher` (what
the user started from), `ema` and `old` (weights that follow the student). A *component* is a network of the pipeline:
`unet` or `transformer`, `text_encoder`, `text_encoder_2`.

Three ways to keep them apart:

- `AdapterRoles`: every role is a list of LoRA adapters on the same base weights. The reference is the base alone, or
  the base with the LoRA that the user brought. No role costs another copy of the backbone.
- `CopyRoles`: full fine-tuning, or no training at all. The student is the pipeline's own network; every other role
  is a frozen copy, made only for the roles that were asked for. `reference` and `teacher` share one.
- `UserRoles`: every role is an attention to the user beside the frozen attention to the prompt; the reference has none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from unifl.errors import UserError, nearest

STUDENT = "student"
"""The role that trains; also the name of its adapter."""

START_ROLES = ("reference", "teacher")
"""Roles that keep what the user started from; they never change."""

FOLLOWING_ROLES = ("ema", "old")
"""Roles that begin as the student and are moved towards it."""


class Roles(ABC):
    """The weight sets of a generator.

    Attributes:
        current: The role whose weights an evaluation would use now. It is "student" except within `use`.
        components: The denoiser and the text encoders, by name; those that do not train are shared by all roles.
    """

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        self.components = dict(components)
        self.current = STUDENT
        self._names = [STUDENT]

    @property
    def names(self) -> tuple[str, ...]:
        """The roles that can be used."""
        return tuple(self._names)

    def add(self, role: str) -> None:
        """Makes a role available; one that is there already stays as it is.

        Args:
            role: "reference" or "teacher" (equal to the start), or "ema" or "old" (equal to the student now).

        Raises:
            UserError: Another name; or a start role that would have to be made after training has changed the
                student (full fine-tuning keeps no other copy of the start).
        """
        if role in self._names:
            return
        if role not in START_ROLES + FOLLOWING_ROLES:
            raise UserError(_unknown_role(role, (STUDENT, *START_ROLES, *FOLLOWING_ROLES)))
        self._make(role)
        self._names.append(role)

    def require(self, role: str) -> None:
        """Refuses a role that was not made: its weights would silently be the student's, or the start.

        Raises:
            UserError: With the roles that there are.
        """
        if role not in self._names:
            raise UserError(_unknown_role(role, self.names))

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Within the block, evaluations use the weights of `role`. Blocks may be nested.

        Raises:
            UserError: No such role.
        """
        self.require(role)
        before = self.current
        if role == before:
            yield
            return
        self._switch(role)
        self.current = role
        try:
            yield
        finally:
            self._switch(before)
            self.current = before

    @abstractmethod
    def module(self, component: str, role: str) -> nn.Module:
        """The network to call for a component, within `use(role)`."""

    @abstractmethod
    def trains(self, component: str) -> bool:
        """Whether the student has weights of its own in this component."""

    @abstractmethod
    def parameters(self, role: str) -> dict[str, Parameter]:
        """The weights that belong to a role alone, as {component.path: parameter}.

        Student, ema and old have the same names. Start roles have none where adapters hold the difference.
        """

    @property
    @abstractmethod
    def num_copies(self) -> int:
        """Copies of the backbone that are held beside the pipeline's own."""

    def check_trainable(self, networks: Mapping[str, nn.Module]) -> None:
        """Refuses to train what no role keeps track of.

        Args:
            networks: All networks of the pipeline, by name.

        Raises:
            UserError: A parameter asks for a gradient and is none of the student's.
        """
        own = {id(parameter) for parameter in self.parameters(STUDENT).values()}
        for component, module in networks.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and id(parameter) not in own:
                    raise UserError(f"{component}.{name} would train, but {self._outside(component)}")

    def ema_update(self, decay: float) -> None:
        """Moves the ema weights: ema <- decay * ema + (1 - decay) * student.

        Raises:
            UserError: No ema role (`add("ema")` makes one).
        """
        if "ema" not in self._names:
            raise UserError('there is no ema role; ask for it first with roles.add("ema")')
        target, source = self.parameters("ema"), self.parameters(STUDENT)
        with torch.no_grad():
            torch._foreach_lerp_(list(target.values()), list(source.values()), 1 - decay)

    def state(self, role: str) -> dict[str, Tensor]:
        """The weights of a role as {name: tensor}, sharing memory with the role.

        Raises:
            UserError: No such role.
        """
        self.require(role)
        return {name: parameter.detach() for name, parameter in self.parameters(role).items()}

    def load_state(self, role: str, state: Mapping[str, Tensor]) -> None:
        """Copies weights into a role.

        Raises:
            UserError: No such role, or names or shapes differ from those of `state(role)`.
        """
        self.require(role)
        own = self.parameters(role)
        differing = sorted(set(own) ^ set(state)) or [n for n in own if own[n].shape != state[n].shape]
        if differing:
            raise UserError(
                f"the saved weights of role {role!r} do not fit this model, first at {differing[0]}; "
                "resume with the model, rank and target modules of the run that saved them"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    @abstractmethod
    def _make(self, role: str) -> None:
        """Creates the weights of a role that is not there yet."""

    @abstractmethod
    def _switch(self, role: str) -> None:
        """Activates the weights of a role where several share one network."""

    @abstractmethod
    def _outside(self, component: str) -> str:
        """Why a parameter of a component must not train, and what to do."""


def _unknown_role(role: str, known: Sequence[str]) -> str:
    close = nearest(role, known)
    hint = f"; did you mean {close!r}?" if close else ";"
    return f"no role {role!r} here{hint} there are {', '.join(known)} (roles.add makes reference, teacher, ema, old)"
