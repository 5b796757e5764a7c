"""Published weights of scorers: found, read, and held to what the model needs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.pretrained import find_place
from unifl.feedback.scorers.looking import Looking, looking_of
from unifl.feedback.scorers.open_clip import from_open_clip
from unifl.feedback.scorers.pickled import read_module

_BUFFERS = ("position_ids",)  # of old checkpoints: numbers in a row, no weights


def load_two_towers(name: str, kind: str, revision: str | None) -> nn.Module:
    """A model of transformers with a tower for pictures and one for text.

    Args:
        name: Hub name or folder.
        kind: Its class.
        revision: Of the hub repository.

    Raises:
        UserError: Nothing there, another kind of model, or weights that are missing or surplus.
    """
    import transformers

    place = find_place(name)
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            place, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise UserError(
            f"cannot read {name}, as a folder or on the hub ({_first_line(error)}); check the name, or download it "
            "once where there is a network and give the folder"
        ) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"the weights of {name} do not fit {kind}: {_first_line(error)}") from error
    surplus = [key for key in info["unexpected_keys"] if not key.endswith(_BUFFERS)]
    require_exact(name, list(info["missing_keys"]), surplus)
    return model


def load_open_clip(weights: str, base: str, revision: str | None) -> nn.Module:
    """CLIP with weights in the layout of open_clip.

    Args:
        weights: See `read_state`.
        base: Folder or hub name with the config of the same model in transformers.
        revision: Of the weights.

    Raises:
        UserError: Nothing there, or weights that are missing, surplus, or of other shapes.
    """
    state = from_open_clip(read_state(weights, revision))
    model = empty_clip(weights, base)
    load_exact(model, state, weights=weights, base=base)
    return model


def load_exact(model: nn.Module, state: Mapping[str, Tensor], *, weights: str, base: str = "") -> None:
    """Give a model the weights of a state, all of them and no others, in float32.

    Args:
        model: With random weights.
        state: By the model's own names.
        weights: Where they come from, for messages.
        base: Where the model's sizes come from; "" where they were read off the weights.

    Raises:
        UserError: Weights that are missing, surplus, or of other shapes.
    """
    own = model.state_dict()
    require_exact(weights, sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys()))
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise UserError(
                f"{weights}: {key} has the shape {tuple(tensor.shape)}, and {base or 'the rest'} needs "
                f"{tuple(own[key].shape)}; take the {'base' if base else 'file'} that "
                f"{'the weights were trained from' if base else 'was published'}"
            )
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()})


def read_state(name: str, revision: str | None = None, *, whole: bool = False) -> Mapping[str, Tensor]:
    """The tensors of one file: a path, `owner/repository/file` on the hub, or `https://...#sha256=...`.

    A `.pt` or `.pth` is read as tensors alone: nothing in it is run.

    Args:
        name: See above.
        revision: Of the hub repository.
        whole: Whether it may also be a module that was saved whole, as some authors do.

    Raises:
        UserError: No such file, or one that holds something else.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        path = _from_web(name) if name.startswith("https://") else _from_hub(name, revision)
    try:
        found = _tensors(path)
    except pickle.UnpicklingError as error:
        if whole:
            return read_module(path)
        raise UserError(f"{path} cannot be read as weights: {_first_line(error)}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as weights: {_first_line(error)}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no table of tensors; give the file of weights that was published")
    return found


def _tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)


def tokenizer_and_looking(name: str, revision: str | None) -> tuple[Any, Looking]:
    """The tokenizer of a model, and what its image processor asks for.

    Raises:
        UserError: Nothing there, or a processor that is not understood.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    tokenizer = read_tokenizer(name, revision)
    try:
        settings = ImageProcessingMixin.get_image_processor_dict(find_place(name), revision=revision)[0]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} has no tokenizer or no preprocessor_config.json that can be read ({_first_line(error)}); give a "
            "model that has both as `base`"
        ) from error
    return tokenizer, looking_of(settings, model=name)


def read_tokenizer(name: str, revision: str | None) -> Any:
    """The tokenizer of a model.

    Raises:
        UserError: Nothing there.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(find_place(name), revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} has no tokenizer that can be read ({_first_line(error)}); give a model that has one as `base`"
        ) from error


def empty_clip(weights: str, base: str) -> Any:
    """CLIP with random weights, of the sizes that a config says.

    Args:
        weights: What it is for, for the message.
        base: Folder or hub name with the config.

    Raises:
        UserError: No config there.
    """
    import transformers

    try:
        config = transformers.CLIPConfig.from_pretrained(find_place(base))
    except OSError as error:
        raise UserError(
            f"{weights} needs the config and the tokenizer of {base}, which cannot be reached "
            f"({_first_line(error)}); give a folder with them as `base`"
        ) from error
    return transformers.CLIPModel(config)


def require_exact(name: str, missing: list[str], surplus: list[str]) -> None:
    """Refuse a checkpoint that does not hold exactly the weights of its model.

    Raises:
        UserError: With the first of them.
    """
    for what, keys in (("lacks", missing), ("holds", surplus)):
        if keys:
            rest = "which would be random" if what == "lacks" else "which this model does not have"
            raise UserError(
                f"{name} {what} {len(keys)} weights ({keys[0]}{', ...' if len(keys) > 1 else ''}), {rest}; use the "
                "checkpoint that was published for this scorer"
            )


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    parts = name.split("/")
    if len(parts) < 3 or name.startswith((".", "/", "~")):
        raise UserError(f"there are no weights at {name}; give a file, or owner/repository/file on the hub")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"there is no file {name}, and it cannot be fetched ({_first_line(error)}); download it once where there "
            "is a network and give its path"
        ) from error


def _from_web(name: str) -> Path:
    """A file at an address, known by its SHA-256; it is kept where torch keeps what it downloads."""
    from huggingface_hub import is_offline_mode

    url, _, expected = name.partition("#sha256=")
    if len(expected) != 64:
        raise UserError(
            f"{url} may hold anything; download it and give the file, or add #sha256= and its 64 digits"
        )
    path = Path(torch.hub.get_dir(), "checkpoints", expected[:8], unquote(url.rpartition("/")[2]))
    if path.is_file():
        return path
    try:
        if is_offline_mode():
            raise OSError("HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
    except (OSError, RuntimeError) as error:  # no network, another file
        raise UserError(
            f"there is no file {path}, and it cannot be fetched ({_first_line(error)}); download {url} once where "
            "there is a network and give its path"
        ) from error
    return path


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
