"""Trained models as files that other programs read: diffusers pipelines, LoRA for diffusers and in kohya's format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from unifl.disk import require_free_space
from unifl.errors import UserError
from unifl.models.adapters import AdapterRoles
from unifl.models.denoiser import UNET
from unifl.models.generator import Generator
from unifl.models.merge import merged_pipeline
from unifl.models.roles import STUDENT
from unifl.process import ConsistencySampler, Spacing

LORA_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"

_CONFIGS_AND_TOKENIZERS = 8 * 2**20  # bytes; a generous guess


@dataclass(frozen=True)
class _Update:
    """A low-rank update of one layer: scaling * up @ down."""

    down: Tensor  # (rank, in) or (rank, in, k, k)
    up: Tensor  # (out, rank) or (out, rank, 1, 1)
    scaling: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def alpha(self) -> float | int:
        alpha = self.scaling * self.rank
        return round(alpha) if abs(alpha - round(alpha)) < 1e-6 else alpha


def save_pipeline(
    generator: Generator,
    folder: str | Path,
    *,
    role: str = STUDENT,
    spacing: Spacing | None = None,
    consistency: ConsistencySampler | None = None,
) -> Path:
    """Saves a complete diffusers pipeline (safetensors); LoRA adapters are folded into the weights.

    Args:
        generator: The model.
        folder: Made if needed.
        role: Whose weights.
        spacing: Ships a DDIM scheduler with these timesteps; None ships the scheduler of the start, and a flow model
            ships it in any case.
        consistency: Ships the scheduler of a consistency model in place of that.

    Returns:
        The folder.

    Raises:
        UserError: No such role, a user adapter (see `save_user_adapter`), or the disk has too little room.
    """
    networks = generator.modules().values()
    weights = sum(p.numel() * p.element_size() for module in networks for p in module.parameters())
    require_free_space(folder, weights + _CONFIGS_AND_TOKENIZERS)
    pipeline = merged_pipeline(generator, role=role, spacing=spacing, consistency=consistency)
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    return Path(folder)


def save_lora(generator: Generator, folder: str | Path, *, role: str = STUDENT) -> Path:
    """Saves what was trained as LoRA: for `pipe.load_lora_weights(folder)`, and for a UNet in kohya's key format too.

    A LoRA that the run started from is part of the files: on the model without it they give what was trained.
    The two updates of a layer are stacked, which is exact and adds up their ranks.

    Args:
        generator: A generator that trains LoRA.
        folder: Made if needed.
        role: "student", "ema" or "old"; "reference" where there was a LoRA to start from.

    Returns:
        The folder, with `pytorch_lora_weights.safetensors` and, for a UNet, `pytorch_lora_weights_kohya.safetensors`.

    Raises:
        UserError: The generator has no adapters, no such role, a role without a LoRA, or the LoRA it started from is
            no plain one (DoRA, biases).
    """
    generator.roles.require(role)
    if not isinstance(generator.roles, AdapterRoles):
        raise UserError(
            "this model was not trained with LoRA, so there is none to save; save the pipeline instead"
        )
    updates = {name: _updates(generator.roles, name, role) for name in generator.roles.components}
    updates = {name: found for name, found in updates.items() if found}
    if not updates:
        raise UserError(f"the role {role!r} is the model without any LoRA; save the student, ema or old")
    packed = {
        name: _peft_keys(found, is_text=name.startswith("text_encoder")) for name, found in updates.items()
    }
    size = sum(t.numel() * t.element_size() for state in packed.values() for t in state.values())
    require_free_space(folder, 2 * size + 2**20)

    Path(folder).mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {}
    for name, state in packed.items():
        arguments[f"{name}_lora_layers"] = state
        arguments[f"{name}_lora_adapter_metadata"] = _metadata(updates[name])
    type(generator.pipeline).save_lora_weights(str(folder), weight_name=LORA_FILE, **arguments)
    if generator.denoiser == UNET:
        save_file(
            _kohya(updates, is_xl=generator.is_xl),
            str(Path(folder) / KOHYA_FILE),
            metadata={"format": "pt"},
        )
    return Path(folder)


def _updates(roles: AdapterRoles, component: str, role: str) -> dict[str, _Update]:
    """The sum of all adapters of a role, by layer."""
    module, adapters = roles.components[component], roles.adapters(component, role)
    _require_plain(module, adapters)
    found: dict[str, _Update] = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        parts = [
            _Update(
                _stored(layer.lora_A[name].weight),
                _stored(layer.lora_B[name].weight),
                float(layer.scaling[name]),
            )
            for name in adapters
            if name in layer.lora_A
        ]
        if parts:
            found[path] = parts[0] if len(parts) == 1 else _stacked(parts)
    return found


def _stacked(parts: list[_Update]) -> _Update:
    """s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]."""
    down = torch.cat([part.down for part in parts])
    up = torch.cat([part.scaling * part.up for part in parts], dim=1)
    return _Update(down, up.contiguous(), 1.0)


def _stored(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu().contiguous()


def _require_plain(module: Any, adapters: list[str]) -> None:
    for name in adapters:
        config = module.peft_config[name] if hasattr(module, "peft_config") else None
        if config is not None and (getattr(config, "use_dora", False) or getattr(config, "lora_bias", False)):
            raise UserError(
                "the LoRA that training started from uses DoRA or biases, which cannot be stacked with another; "
                "save the full pipeline instead"
            )


def _peft_keys(updates: dict[str, _Update], *, is_text: bool) -> dict[str, Tensor]:
    """{path.lora_A.weight, path.lora_B.weight}, with the `text_model.` prefix that all readers understand."""
    state = {}
    for path, update in updates.items():
        full = f"text_model.{_bare(path)}" if is_text else path
        state[f"{full}.lora_A.weight"] = update.down
        state[f"{full}.lora_B.weight"] = update.up
    return state


def _metadata(updates: dict[str, _Update]) -> dict[str, Any]:
    """The adapter's config for diffusers; without it a reader takes alpha = rank."""
    ranks = {_bare(path): update.rank for path, update in updates.items()}
    alphas = {_bare(path): update.alpha for path, update in updates.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "target_modules": list(ranks),
        "use_dora": False,
        "lora_bias": False,
    }


def _bare(path: str) -> str:
    """Module path without the prefix that only some versions of the CLIP text encoder have."""
    return path.removeprefix("text_model.")


def _kohya(updates: dict[str, dict[str, _Update]], *, is_xl: bool) -> dict[str, Tensor]:
    """Keys of kohya's sd-scripts: lora_unet_..., and lora_te_... (SD) or lora_te1_..., lora_te2_... (SDXL)."""
    state: dict[str, Tensor] = {}
    for name, found in updates.items():
        for path, update in found.items():
            layer = _peft_keys({path: update}, is_text=name != UNET)
            converted = convert_state_dict_to_kohya(
                {f"{name}.{key}": tensor for key, tensor in layer.items()}
            )
            for key in converted:
                if key.endswith(".alpha"):  # diffusers takes alpha = rank for granted
                    converted[key] = torch.tensor(float(update.alpha))
            state.update(converted)
    if is_xl:
        return state
    return {key.replace("lora_te1_", "lora_te_", 1): tensor for key, tensor in state.items()}
