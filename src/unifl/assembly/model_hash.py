"""Which model it is: hashes of everything that it brings to its pictures."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from unifl.models import Generator, merged_pipeline
from unifl.models.roles import START_ROLES
from unifl.models.user import UserRoles
from unifl.models.user_files import base_state, user_state


def weights_sha256(generator: Generator, role: str = "student") -> str:
    """A hash of the weights that draw as a role does, adapters folded in.

    The same model gives the same hash however it was loaded: complete, or as LoRA on its base. A user adapter, which
    cannot be folded in, is a network beside the others.
    """
    digest = hashlib.sha256()
    for name, state in sorted(_networks(generator, role).items()):
        for key, tensor in sorted(state.items()):
            digest.update(f"{name}.{key} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def process_sha256(generator: Generator) -> str:
    """A hash of what else of a model decides its pictures: noise, times, what is predicted, scales of latents.

    These come from the configs of scheduler, autoencoder and pipeline, which may be mended while weights stay.
    """
    vae, pipeline = generator.pipeline.vae.config, generator.pipeline.config
    times = torch.linspace(0, 1, generator.num_train_timesteps + 1)[1:]
    said = [
        generator.kind,
        generator.num_train_timesteps,
        generator.spacing,
        generator.steps_offset,
        generator.schedule.times(8, "trailing").tolist(),  # a flow's shift
        vae.scaling_factor,
        vae.get("shift_factor"),
        pipeline.get("force_zeros_for_empty_prompt"),
    ]
    digest = hashlib.sha256(repr(said).encode())
    for weights in generator.process.weights(times):
        digest.update(weights.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _networks(generator: Generator, role: str) -> dict[str, dict[str, Tensor]]:
    """Weights by network and name."""
    names = generator.modules()
    if not isinstance(generator.roles, UserRoles):
        pipeline = merged_pipeline(generator, role=role)
        return {name: getattr(pipeline, name).state_dict() for name in names}
    found = {name: base_state(generator, name) for name in names}
    return found if role in START_ROLES else {**found, "user adapter": user_state(generator, role)}
