"""Checkpoints of transformers as frozen networks on pictures in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.preprocessing import Preprocessing, read_preprocessing

Task = Literal["instances", "semantic", "depth", "backbone", "objects", "words"]

_MAPPINGS = {
    "instances": "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING",
    "semantic": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING",
    "depth": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING",
    "backbone": "MODEL_FOR_BACKBONE_MAPPING",
    "objects": "MODEL_FOR_OBJECT_DETECTION_MAPPING",
    "words": "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING",
}
# the others of that mapping answer otherwise (DETR) or want a text as well (OneFormer)
_WITH_QUERIES = ("mask2former", "maskformer")


class PretrainedNetwork(nn.Module):
    """A network behind its preprocessing.

    Args:
        model: A module that takes `pixel_values`.
        preprocessing: From pictures in [0, 1] to what the model is shown.
        read: What of the model's answer is used: one tensor or several, each with one row per picture.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        read: Callable[[Any], Tensor | Sequence[Tensor]],
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.read = read

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Any:
        """What `read` takes from the answer; lists and tuples become lists.

        Raises:
            UserError: Pictures of a size that the model cannot take.
        """
        found = self.read(self.model(self.preprocessing(images)))
        return found if isinstance(found, Tensor) else list(found)


def load_checkpoint(
    name: str, task: Task, *, revision: str | None = None, layers: Sequence[str] | None = None
) -> tuple[nn.Module, Preprocessing]:
    """A model of transformers, and what its image processor does.

    Args:
        name: Hub name or folder, with weights as safetensors.
        task: What it has to be.
        revision: Of the hub repository.
        layers: Stages of a backbone; None is its last four.

    Raises:
        UserError: Nothing there (or no network), another kind of model, weights that are missing, an image processor
            that cannot be followed.
    """
    name = find_place(name)
    config = _read_config(name, revision)
    cls = _model_class(name, task, config)
    if task == "backbone":
        _choose_stages(name, config, layers)
    try:
        model, info = cls.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise UserError(f"cannot load the weights of {name} (safetensors): {_first_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the weights of {name} do not fit its config.json: {_first_line(error)}") from error
    missing = [key for key in info["missing_keys"] if not _is_idle(key, task)]
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} weights of {cls.__name__} ({missing[0]}, ...), which would be random; "
            "use a checkpoint that was trained for this"
        )
    settings = _read_processor(name, revision)
    return model.eval().requires_grad_(False), read_preprocessing(
        settings, model=name, multiple=_patch_size(config)
    )


def _is_idle(key: str, task: Task) -> bool:
    """Whether a missing weight changes nothing.

    Norms of single stages belong to the backbone class alone and start as the identity. The first fusion layer of DPT
    has nothing to add to, so that checkpoints of its original layout leave out that part.
    """
    return (task == "backbone" and "norm" in key) or "fusion_stage.layers.0.residual_layer1." in key


def label_names(name: str, *, revision: str | None = None) -> list[str]:
    """Names of a checkpoint's labels in the order of its outputs (`id2label`).

    Raises:
        UserError: Nothing there, or labels without names.
    """
    name = find_place(name)
    found = _read_config(name, revision).id2label or {}
    names = [str(found[index]) for index in sorted(found)]
    if not names or names[0] == "LABEL_0":
        raise UserError(f"the config of {name} names no labels (id2label); list `categories` instead")
    return names


def checkpoint_type(name: str, *, revision: str | None = None) -> str:
    """The `model_type` of a checkpoint.

    Raises:
        UserError: Nothing there, or a model that transformers does not know.
    """
    return str(_read_config(find_place(name), revision).model_type)


def find_place(name: str) -> str:
    """A path with its home folder written out, or a hub name as it is.

    Raises:
        UserError: What can only be meant as a path, and is none.
    """
    from unifl.models.load import looks_like_path  # which brings all of diffusers

    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    if looks_like_path(name):
        raise UserError(f"there is no checkpoint at {name}; check the path")
    return name


def _read_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"{name} holds no model: it has no config.json; give a folder that save_pretrained wrote"
        )
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        raise UserError(
            f"cannot reach {name}, as a folder or on the hub ({_first_line(error)}); check the name, or download it "
            "once where there is a network and give the folder"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{name} is no model that transformers knows: {_first_line(error)}") from error


def _model_class(name: str, task: Task, config: Any) -> Any:
    import transformers

    mapping: Mapping[Any, Any] = getattr(transformers, _MAPPINGS[task])
    found = mapping[type(config)] if type(config) in mapping else None
    if task == "instances" and config.model_type not in _WITH_QUERIES:
        found = None
    held = config.architectures or []
    # any head may sit on a backbone and is left out; elsewhere a missing head would be random
    if found is not None and (task == "backbone" or not held or found.__name__ in held):
        return found
    wanted = {
        "instances": "Mask2FormerForUniversalSegmentation or MaskFormerForInstanceSegmentation",
        "semantic": "a ...ForSemanticSegmentation",
        "depth": "a ...ForDepthEstimation",
        "backbone": "a model that transformers offers as a backbone",
        "objects": "a ...ForObjectDetection, Mask2FormerForUniversalSegmentation, or OWL",
        "words": "OwlViTForObjectDetection or Owlv2ForObjectDetection",
    }[task]
    holds = f"{name} holds {', '.join(held) or config.model_type}, but"
    if task in ("objects", "words"):
        raise UserError(f"{holds} a detector is {wanted}; name another")
    raise UserError(f"{holds} this critic needs {wanted}; change `kind` or `model`")


def _choose_stages(name: str, config: Any, layers: Sequence[str] | None) -> None:
    stages = list(config.stage_names)
    for layer in layers or ():
        if layer not in stages:
            raise UserError(f"{name} has no stage {layer!r}; it has {', '.join(stages)}")
    config.out_features = [stage for stage in stages if stage in layers] if layers else stages[1:][-4:]


def _read_processor(name: str, revision: str | None) -> Mapping[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return ImageProcessingMixin.get_image_processor_dict(name, revision=revision)[0]
    except OSError as error:
        raise UserError(
            f"{name} has no preprocessor_config.json, which says at what size and with what mean and std it looks; "
            "save the image processor beside the model"
        ) from error


def _patch_size(config: Any) -> int:
    """What sides have to be a multiple of; backbones of several strides pad by themselves."""
    inner = getattr(config, "backbone_config", None)
    for holder in (config, inner):
        size = getattr(holder, "patch_size", None)
        if isinstance(size, int) and getattr(holder, "num_hidden_layers", None) and not _has_pyramid(holder):
            return size
    return 1


def _has_pyramid(config: Any) -> bool:
    return isinstance(getattr(config, "depths", None), list | tuple)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
