"""From a folder, a hub name or a single file to a Generator that is ready to train or to draw."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import SafetensorError, safe_open

from unifl.errors import UserError, nearest
from unifl.models.adapters import START_ADAPTER, AdapterRoles
from unifl.models.copies import CopyRoles
from unifl.models.denoiser import TRANSFORMER, denoiser_name, denoiser_of, unread_parts
from unifl.models.generator import Generator, MixedPrecision
from unifl.models.guidance_embedding import add_guidance_embedding, guidance_width
from unifl.models.lora import LoraTraining, lora_configs, unread_layers
from unifl.models.prompts import T5, text_encoder_names, trainable_text_encoders
from unifl.models.roles import Roles
from unifl.models.user import UserRoles, UserTraining

PIPELINES = {
    cls.__name__: cls
    for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline)
}
"""Pipeline classes that can be used (Stable Diffusion 1.x and 2.x, among them v-prediction; SDXL; 3 and 3.5)."""


@dataclass(kw_only=True)
class FullTraining:
    """Train all weights of the denoiser; the reference, where a method needs one, is a copy."""

    kind: Literal["full"] = "full"
    text_encoder: bool = False
    """Train the text encoders as well; a T5 stays frozen."""
    embed_guidance: bool = False
    """Tell the student its guidance scale by an embedding, for distillation; it then needs one evaluation per step."""


def load_generator(
    source: str | Path,
    *,
    train: LoraTraining | FullTraining | UserTraining | None = None,
    roles: Sequence[str] = (),
    lora: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    mixed_precision: MixedPrecision = "no",
    resolution: int | None = None,
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
    seed: int = 0,
) -> Generator:
    """Loads a model.

    Args:
        source: A diffusers folder, a hub name, or a .safetensors file.
        train: What trains; None loads a generator that only draws.
        roles: Roles besides the student, see `unifl.models.roles`. Methods add those that they need.
        lora: A LoRA to start from (folder, file or hub name, in diffusers or kohya format). It becomes part of the
            start: the reference has it, and the student begins as the model with it. Where no LoRA trains, it is
            folded into the weights.
        device: Where everything goes; None leaves it where it is, which is the CPU for what is loaded here.
        dtype: Of the frozen weights. Adapters are float32 in any case; full training needs float32, and LoRA on
            float16 and user adapters on half precision need `mixed_precision="bf16"`.
        mixed_precision: Precision of network evaluations.
        resolution: Pixels; None takes the size the model was trained at.
        revision: Of the hub repository.
        variant: Of the weight files, such as "fp16".
        config: For a single file: a diffusers folder or hub name of the same family, whose tokenizers and configs
            are read (its weights are not). None asks the hub for the usual one.
        seed: Decides the first values of the adapters.

    Raises:
        UserError: Nothing there, a pipeline class that is not supported, settings that do not fit.
    """
    _require_precision(train, dtype, mixed_precision)
    pipeline = load_pipeline(source, dtype=dtype, revision=revision, variant=variant, config=config)
    return make_generator(
        pipeline,
        train=train,
        roles=roles,
        lora=lora,
        device=device,
        mixed_precision=mixed_precision,
        resolution=resolution,
        seed=seed,
        source=str(source),
    )


def make_generator(
    pipeline: Any,
    *,
    train: LoraTraining | FullTraining | UserTraining | None = None,
    roles: Sequence[str] = (),
    lora: str | Path | None = None,
    device: str | torch.device | None = None,
    mixed_precision: MixedPrecision = "no",
    resolution: int | None = None,
    seed: int = 0,
    source: str = "",
) -> Generator:
    """As `load_generator`, for a pipeline that is loaded already; the pipeline becomes the generator's own.

    Raises:
        UserError: A pipeline class that is not supported, one that carries adapters already, or settings that do not
            fit.
    """
    if type(pipeline).__name__ not in PIPELINES:
        raise UserError(_unsupported(type(pipeline).__name__))
    _require_precision(train, denoiser_of(pipeline).dtype, mixed_precision)
    if any(getattr(network, "peft_config", None) for network in _networks(pipeline).values()):
        raise UserError(
            "the pipeline carries LoRA adapters already, which would be no part of any role; pass that LoRA by `lora=` "
            "to a pipeline without it, or make it part of the weights with pipeline.fuse_lora() and "
            "pipeline.unload_lora_weights()"
        )
    if lora is not None:
        _load_start_lora(pipeline, lora, fuse=not isinstance(train, LoraTraining))
    adds_guidance = _adds_guidance(pipeline, train)
    if adds_guidance:
        add_guidance_embedding(pipeline.unet)
    weight_sets = _make_roles(pipeline, train, seed)
    if device is not None:
        pipeline.to(device)
    generator = Generator(
        pipeline,
        weight_sets,
        resolution=resolution,
        mixed_precision=mixed_precision,
        source=source,
        adds_guidance=adds_guidance,
    )
    for role in roles:
        weight_sets.add(role)
    return generator


def load_pipeline(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
) -> Any:
    """Loads a supported diffusers pipeline; arguments as in `load_generator`.

    The safety checker of Stable Diffusion 1 is left out: it would judge pictures that are never shown.
    """
    path = Path(source).expanduser()
    if path.is_file():
        pipeline = _from_single_file(path, dtype=dtype, config=config)
    elif path.is_dir():
        pipeline = _from_folder(path, dtype=dtype, variant=variant)
    elif looks_like_path(str(source)):
        raise UserError(f"no model at {source}; check the path (a diffusers folder or a .safetensors file)")
    else:
        pipeline = _from_hub(str(source), dtype=dtype, revision=revision, variant=variant)
    return pipeline


def _require_precision(
    train: LoraTraining | FullTraining | UserTraining | None,
    dtype: torch.dtype,
    mixed_precision: MixedPrecision,
) -> None:
    """Refuses training that loses small gradients or small updates to half precision.

    Args:
        train: What trains.
        dtype: Of the frozen weights, and with full training of those that train.
        mixed_precision: Precision of network evaluations.
    """
    if isinstance(train, FullTraining) and dtype in (torch.float16, torch.bfloat16):
        raise UserError(
            f"full fine-tuning updates the weights themselves, which {dtype} is too coarse for; load them in float32 "
            "and set mixed_precision to bf16"
        )
    if isinstance(train, LoraTraining) and dtype == torch.float16 and mixed_precision != "bf16":
        raise UserError(
            "LoRA training on float16 weights would send gradients back in float16, where small ones vanish; load the "
            "weights in bfloat16, or set mixed_precision to bf16"
        )
    is_half = dtype in (torch.float16, torch.bfloat16)
    if isinstance(train, UserTraining) and is_half and mixed_precision != "bf16":
        raise UserError(
            f"a user adapter trains in float32, which does not go with weights in {dtype} alone; set mixed_precision "
            "to bf16, or load the weights in float32"
        )


def looks_like_path(source: str) -> bool:
    """Whether a string can only be meant as a path: hub names have at most one slash and no file ending."""
    return (
        source.startswith((".", "/", "~"))
        or "\\" in source
        or source.count("/") > 1
        or source.endswith(("/", ".safetensors", ".ckpt", ".pt", ".bin"))
    )


def _from_folder(path: Path, *, dtype: torch.dtype, variant: str | None) -> Any:
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{path} is not a diffusers folder: it has no model_index.json; give the folder that "
            "pipeline.save_pretrained wrote"
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        name = content["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{index} cannot be read as the index of a pipeline; save the pipeline again"
        ) from error
    try:
        return _pipeline_class(name).from_pretrained(
            str(path), dtype=dtype, variant=variant, local_files_only=True, **_left_out(name, content)
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _as_user_error(error, f"the pipeline in {path} cannot be loaded") from error


def _from_hub(name: str, *, dtype: torch.dtype, revision: str | None, variant: str | None) -> Any:
    try:
        index = DiffusionPipeline.load_config(name, revision=revision)
        class_name = index["_class_name"]
        return _pipeline_class(class_name).from_pretrained(
            name, dtype=dtype, revision=revision, variant=variant, **_left_out(class_name, index)
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise _as_user_error(
            error,
            f"no folder {name} here, and no model of that name could be loaded from the hub; check the name, the "
            f"network and your access rights, or give a local folder{_beside(name)}",
        ) from error


def _beside(name: str) -> str:
    """A question whether a folder was meant that is spelled nearly alike; empty where there is none."""
    path = Path(name)
    guess = nearest(path.name, [one.name for one in path.parent.glob("*/")])
    return f"; did you mean {path.with_name(guess)}?" if guess else ""


def _from_single_file(path: Path, *, dtype: torch.dtype, config: str | None) -> Any:
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file; other formats can run code when opened, convert it first"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a safetensors file; it may be incomplete: {error}"
        ) from error
    if not any(key.startswith("model.diffusion_model.") for key in keys):
        raise UserError(
            f"{path} holds no complete Stable Diffusion checkpoint (no model.diffusion_model weights); a LoRA is "
            "given by `lora`, on top of a model"
        )
    if any(".joint_blocks." in key for key in keys):
        raise UserError(
            f"{path} is a single file of Stable Diffusion 3, which is loaded from its diffusers folder alone; "
            "give that, or make one with StableDiffusion3Pipeline.from_single_file(...).save_pretrained(...)"
        )
    xl = any(key.startswith("conditioner.embedders.1.") for key in keys)
    name = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    try:
        return _pipeline_class(name).from_single_file(
            str(path), dtype=dtype, config=config, **_left_out(name, {})
        )
    # diffusers and transformers raise many kinds here, down to KeyError for weights that do not fit a config
    except Exception as error:
        raise _as_user_error(
            error,
            f"the checkpoint {path} cannot be loaded; without network, set `config` to a local diffusers folder of "
            "the same family, whose tokenizer and configs are read",
        ) from error


def _pipeline_class(name: str) -> Any:
    if name not in PIPELINES:
        raise UserError(_unsupported(name))
    return PIPELINES[name]


def _unsupported(name: str) -> str:
    return f"pipelines of class {name} are not supported; supported are {', '.join(PIPELINES)}"


def _left_out(class_name: str, index: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that say what a pipeline does without."""
    if class_name == "StableDiffusion3Pipeline":  # it does not take it from its own index that there is no T5
        return {name: None for name in (T5, "tokenizer_3") if index.get(name, (None, None))[1] is None}
    if class_name == "StableDiffusionXLPipeline":
        return {"add_watermarker": False}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _as_user_error(error: Exception, what: str) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{what} ({reason[:300]})")


def _load_start_lora(pipeline: Any, lora: str | Path, *, fuse: bool) -> None:
    if looks_like_path(str(lora)) and not Path(lora).expanduser().exists():
        raise UserError(f"no LoRA at {lora}; check the path (a .safetensors file or its folder)")
    path = Path(lora).expanduser()
    place, here = (str(path), True) if path.exists() else (str(lora), False)
    try:
        with _quiet("diffusers.loaders"):
            pipeline.load_lora_weights(place, adapter_name=START_ADAPTER)
    except Exception as error:
        reason = (
            f"the LoRA {lora} cannot be loaded into this model; is it of its family?"
            if here
            else f"there is no LoRA {lora} here, nor can one of that name be had from the hub; check the path"
        )
        raise _as_user_error(error, reason) from error
    if not any(
        START_ADAPTER in (getattr(m, "peft_config", None) or {}) for m in _networks(pipeline).values()
    ):
        raise UserError(f"the LoRA {lora} changes no layer of this model; is it of its family?")
    if fuse:
        pipeline.fuse_lora(adapter_names=[START_ADAPTER])
        pipeline.unload_lora_weights()


def _make_roles(pipeline: Any, train: LoraTraining | FullTraining | UserTraining | None, seed: int) -> Roles:
    networks = _networks(pipeline)
    is_xl = isinstance(pipeline, StableDiffusionXLPipeline)
    if isinstance(train, LoraTraining):
        return AdapterRoles(networks, lora_configs(pipeline, train, is_xl=is_xl), seed=seed)
    if isinstance(train, UserTraining):
        return UserRoles(networks, train, seed=seed)
    if train is None:
        return CopyRoles(networks)
    denoiser = denoiser_name(pipeline)
    texts = trainable_text_encoders(pipeline) if train.text_encoder else []
    frozen = [f"{n}.{path}" for n in texts for path in unread_layers(pipeline, n, is_xl=is_xl)]
    frozen += [f"{denoiser}.{path}" for path in unread_parts(networks[denoiser])]
    return CopyRoles(networks, trained=[denoiser, *texts], frozen=frozen)


def _networks(pipeline: Any) -> dict[str, Any]:
    return {
        name: getattr(pipeline, name) for name in (denoiser_name(pipeline), *text_encoder_names(pipeline))
    }


def _adds_guidance(pipeline: Any, train: LoraTraining | FullTraining | UserTraining | None) -> bool:
    """Whether the denoiser is to be given the embedding of the guidance scale."""
    if not isinstance(train, FullTraining) or not train.embed_guidance:
        return False
    if denoiser_name(pipeline) == TRANSFORMER:
        raise UserError(
            "embed_guidance adds an embedding of the guidance scale to a UNet, and this model has a transformer; set "
            "model.train.embed_guidance to false"
        )
    return not guidance_width(pipeline.unet)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Mutes warnings that a component has no keys in a LoRA: a UNet-only LoRA is the usual case."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
