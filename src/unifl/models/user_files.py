"""User adapters as files that plain diffusers loads, and back into a student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unifl.disk import require_free_space
from unifl.errors import UserError
from unifl.models.generator import Generator
from unifl.models.roles import START_ROLES, STUDENT
from unifl.models.user import COMPONENT, UserRoles, UserTraining, cross_attentions

USER_FILE = "ip_adapter.safetensors"

_PUBLISHED = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "norm"}
"""Layers of the network that makes tokens: in diffusers, and in files."""


def save_user_adapter(generator: Generator, folder: str | Path, *, role: str = STUDENT) -> Path:
    """Saves what was trained, for `pipe.load_ip_adapter(folder, subfolder="", weight_name=USER_FILE, ...)`.

    A LoRA that the run started from is no part of the file: load it into the pipeline as well.

    Args:
        generator: A generator that trains a user adapter.
        folder: Made if needed.
        role: "student", "ema" or "old".

    Returns:
        The folder, with `ip_adapter.safetensors` (float32).

    Raises:
        UserError: The generator has no user adapter, no such role, a role without one, or too little room.
    """
    roles = _user_roles(generator)
    roles.require(role)
    if role in START_ROLES:
        raise UserError(f"the role {role!r} is the model without an adapter; save the student, ema or old")
    state = user_state(generator, role)
    require_free_space(folder, sum(tensor.nbytes for tensor in state.values()) + 2**20)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(state, str(Path(folder) / USER_FILE), metadata={"format": "pt"})
    return Path(folder)


def user_state(generator: Generator, role: str = STUDENT) -> dict[str, Tensor]:
    """The adapter of a role with the names of its file, in float32 on the CPU, its scale in the weights.

    Raises:
        UserError: The generator has no user adapter.
    """
    roles = _user_roles(generator)
    own, state = roles.state(role), {}
    for published, name in _names(roles).items():
        tensor = own[name].float().cpu()
        state[published] = (tensor * roles.settings.scale if "to_v_ip" in name else tensor).contiguous()
    return state


def base_state(generator: Generator, component: str) -> dict[str, Tensor]:
    """The weights of a network without any adapter.

    Raises:
        UserError: The generator has no user adapter.
    """
    roles = _user_roles(generator)
    own = {id(parameter) for parameter in roles.adapter_parameters()}
    state = generator.modules()[component].state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if id(tensor) not in own}


def load_user_adapter(generator: Generator, source: str | Path) -> None:
    """Gives the student the adapter of a file; the reference stays the model without one.

    Args:
        generator: With a user adapter of the same sizes, see `user_training_of`; before its first step, and before
            roles that follow the student are added.
        source: The file, or its folder.

    Raises:
        UserError: The generator has no user adapter, nothing to read, or an adapter of other sizes.
    """
    roles = _user_roles(generator)
    state, own = _read(source), roles.state(STUDENT)
    names = _names(roles)
    differing = sorted(set(names) ^ set(state)) or [
        published for published, name in names.items() if own[name].shape != state[published].shape
    ]
    if differing:
        raise UserError(
            f"the user adapter in {source} does not fit this model, first at {differing[0]}; take the model it was "
            "trained on, and train=user_training_of(...) of the file"
        )
    scale = roles.settings.scale
    roles.load_state(
        STUDENT,
        {n: state[key] / scale if "to_v_ip" in n else state[key] for key, n in names.items()},
    )


def user_training_of(source: str | Path) -> UserTraining:
    """The settings that a saved user adapter fits.

    Args:
        source: The file, or its folder.

    Raises:
        UserError: Nothing to read, or an IP-Adapter of another layout.
    """
    state = _read(source)
    width = len(state["image_proj.norm.weight"])
    into, out = state["image_proj.proj.0.weight"], state["image_proj.proj.2.weight"]
    return UserTraining(embedding_dim=into.shape[1], tokens=len(out) // width)


def _user_roles(generator: Generator) -> UserRoles:
    if not isinstance(generator.roles, UserRoles):
        raise UserError(
            "this model has no user adapter; load it with train=UserTraining(embedding_dim=...), or save what it has "
            "as a pipeline or a LoRA"
        )
    return generator.roles


def _names(roles: UserRoles) -> dict[str, str]:
    """Names in a file, and those of the same tensors in a role."""
    names = {
        f"image_proj.{published}.{end}": f"{COMPONENT}.encoder_hid_proj.{layer}.{end}"
        for layer, published in _PUBLISHED.items()
        for end in ("weight", "bias")
    }
    # layers are numbered as in the first published IP-Adapter, which counted those that look at the picture too
    for index, path in enumerate(cross_attentions(roles.components[COMPONENT])):
        for end in ("to_k_ip.weight", "to_v_ip.weight"):
            names[f"ip_adapter.{2 * index + 1}.{end}"] = f"{COMPONENT}.{path}.processor.{end}"
    return names


def _read(source: str | Path) -> Mapping[str, Tensor]:
    path = Path(source).expanduser()
    path = path / USER_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"there is no user adapter at {path}; give {USER_FILE} or its folder")
    try:
        state = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a safetensors file; it may be incomplete: {error}"
        ) from error
    needed = ("image_proj.norm.weight", "image_proj.proj.0.weight", "image_proj.proj.2.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise UserError(
            f"{path} is no user adapter: it has no {missing[0]}; give a file that save_user_adapter wrote"
        )
    return state
