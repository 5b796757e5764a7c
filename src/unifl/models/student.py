"""A student that does not begin as its teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from unifl.errors import UserError
from unifl.models.generator import Generator
from unifl.models.load import load_pipeline
from unifl.models.roles import STUDENT


def start_student(generator: Generator, source: str | Path) -> None:
    """Give the student the weights of a model that was trained before; teacher and reference keep what they have.

    Args:
        generator: In full training (`FullTraining`), before its first step and before roles that follow the student.
        source: A diffusers folder or hub name of the same shape, such as a distilled model.

    Raises:
        UserError: A model of another shape.
    """
    generator.roles.add("teacher")
    pipeline = load_pipeline(source, dtype=torch.float32)
    own = generator.roles.state(STUDENT)
    found = {
        name: parameter.detach()
        for component in generator.roles.components
        for path, parameter in getattr(pipeline, component).named_parameters()
        if (name := f"{component}.{path}") in own
    }
    differing = [name for name in own if name not in found or own[name].shape != found[name].shape]
    if differing:
        raise UserError(
            f"{source} does not have the shape of the student, first at {differing[0]}; name a model that was trained "
            "from the same one with the same settings of model.train"
        )
    generator.load_trainable_state(found)
