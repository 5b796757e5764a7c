"""The figures of docs/sdxl-24gb.md and of the recipes' headers: plans from shapes, on a CPU, without weights.

    cd benchmarks && python plan_sdxl_24gb.py results/plan/memory.json

Critics are networks of the right shape with random weights (their values do not matter to memory): Mask2Former with a
Swin-B backbone and VGG-16 up to relu4_3.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from unifl.assembly import plan_recipe
from unifl.losses.style import gram_distance
from unifl.training import stand_in

CRITICS = {
    "structure": "critics.structure={path: 'plan_sdxl_24gb:Instances', kwargs: {side: 384}}",
    "style": "critics.style={path: 'plan_sdxl_24gb:Style', kwargs: {side: 512}}",
}
WITHOUT_STYLE = ["method.perceptual.weights.style=0"]
STAGE_1, STAGE_2 = "sdxl_unifl_stage1_lora", "sdxl_unifl_stage2_lora"

PAGE = {
    "stage 1, no style": (STAGE_1, WITHOUT_STYLE),
    "stage 2": (STAGE_2, []),
    "stage 1": (STAGE_1, []),
    "stage 1, no style, 768 px": (STAGE_1, [*WITHOUT_STYLE, "model.resolution=768"]),
    "stage 1, no style, UNet not checkpointed": (
        STAGE_1,
        [*WITHOUT_STYLE, "model.gradient_checkpointing=false"],
    ),
    "stage 1, no style, decoder not checkpointed": (
        STAGE_1,
        [*WITHOUT_STYLE, "method.decode={checkpoint: false}"],
    ),
    "stage 1, no style, float32 weights": (STAGE_1, [*WITHOUT_STYLE, "model.dtype=float32"]),
}
"""Rows of the page: recipe and overrides."""

RECIPES = (
    [
        f"{family}_{rest}"
        for family in ("sd15", "sdxl")
        for rest in (
            "unifl_stage1_lora",
            "unifl_stage1_full",
            "unifl_stage2_lora",
            "unifl_stage2_full",
            "refl_lora",
        )
    ]
    + [
        f"sd15_{rest}"
        for rest in ("tcd_lora", "pcm_lora", "mlcm_lora", "scott_full", "guided_full", "progressive_full")
    ]
    + [
        "sd15_lcd_full",
        "sd21_rg_lcd_full",
        "sd21_rg_lcd_proxy_full",
        "sdxl_lcd_lora",
        "sdxl_rg_lcd_lora",
    ]
    + [
        f"{family}_{rest}_lora"
        for family in ("sd15", "sdxl")
        for rest in ("dpo", "ncp_dpo", "ncp_cpo", "sft")
    ]
    + [
        f"sd15_{rest}"
        for rest in (
            "cpo_lora",
            "ncp_sft_lora",
            "ipo_lora",
            "hinge_lora",
            "kto_lora",
            "reward_weighted_lora",
            "dpo_full",
            "inpo_full",
        )
    ]
    + ["sdxl_mapo_lora", "sdxl_pso_lora", "sdxl_inpo_full"]
    + ["sd15_mapo_lora", "sd15_pso_lora", "sd15_ppd_dpo"]
    + [
        f"sdxl_{rest}"
        for rest in (
            "ncp_sft_lora",
            "ipo_lora",
            "hinge_lora",
            "kto_lora",
            "reward_weighted_lora",
            "ppd_dpo",
            "dpo_full",
        )
    ]
)


class _Critic:
    needs: frozenset[str] = frozenset({"image"})

    def __init__(self, name: str, side: int, network: nn.Module) -> None:
        self.name, self.side = name, side
        self.network = network.eval().requires_grad_(False)

    def _shown(self, images: torch.Tensor) -> torch.Tensor:
        side = min(self.side, images.shape[-1])
        return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)

    def pseudo(self, batch):
        return batch


class Instances(_Critic):
    """Mask2Former, Swin-B, 80 categories: the shape of facebook/mask2former-swin-base-coco-instance."""

    def __init__(self, side: int) -> None:
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

        swin = SwinConfig(
            embed_dim=128,
            depths=[2, 2, 18, 2],
            num_heads=[4, 8, 16, 32],
            window_size=12,
            image_size=384,
            drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = Mask2FormerConfig(backbone_config=swin, num_labels=80)
        super().__init__("structure", side, Mask2FormerForUniversalSegmentation(config))

    def __call__(self, images, batch):
        answer = self.network(pixel_values=self._shown(images))
        masks, classes = answer.masks_queries_logits, answer.class_queries_logits
        # as large as a dense loss: every query's probability at every pixel
        pixels = torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1), masks.sigmoid())
        return pixels.log1p().mean((1, 2, 3))


class Style(_Critic):
    """VGG-16 up to relu4_3, Gram matrices of four layers."""

    def __init__(self, side: int) -> None:
        widths, layers, before = [(64, 2), (128, 2), (256, 3), (512, 3)], nn.ModuleList(), 3
        for width, count in widths:
            block = []
            for _ in range(count):
                block += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.Sequential(*block))
        super().__init__("style", side, layers)

    def _features(self, images):
        found, x = [], self._shown(images)
        for number, block in enumerate(self.network):
            x = block(F.max_pool2d(x, 2) if number else x)
            found.append(x)
        return found

    def __call__(self, images, batch):
        with torch.no_grad():
            real = self._features(batch.images)
        return gram_distance(self._features(images), real)


_costs: dict = {}
_measure = stand_in._StandIn._measure


def _measured_once(self, args, kwargs):
    """The costs of a network that was measured before, in another plan."""
    weights = tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in self._network.named_parameters())
    flags = tuple(getattr(module, "gradient_checkpointing", None) for module in self._network.modules())
    inputs = tuple(stand_in._kind(leaf) for leaf in tree_leaves((args, kwargs)))
    key = (weights, flags, inputs, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
    if key not in _costs:
        _costs[key] = _measure(self, args, kwargs)
    return _costs[key]


stand_in._StandIn._measure = _measured_once


def _entry(recipe: str, overrides: list[str], critics: list[str]) -> dict:
    shapes = recipe.split("_")[0]
    forecast = plan_recipe(recipe, [*critics, "model.device=cuda", *overrides], shapes=shapes)
    found = forecast.plan
    return {
        "recipe": recipe,
        "overrides": overrides,
        "memory": found.memory,
        "gradients": found.gradients,
        "activations": found.activations,
        "total": found.total_memory,
        "left_out": forecast.left_out,
    }


def page_row(name: str, entry: dict) -> str:
    """A row of docs/sdxl-24gb.md, in GB."""
    memory, kept = entry["memory"], entry["activations"]
    own = memory.get("weights, LoRA", 0) + memory["optimizers"]
    step = memory["gradients and activations"]
    sizes = [entry["total"] - own - step, own, step, kept["denoiser"], kept.get("decoder", 0)]
    sizes += [sum(kept.values()) - sizes[3] - sizes[4], entry["total"]]
    return f"| {name} | " + " | ".join(f"{size / 1e9:.1f}" for size in sizes) + " |"


def main(path: Path) -> None:
    """Plan everything that is not in the file yet."""
    found = json.loads(path.read_text()) if path.exists() else {"recipes": {}, "page": {}}
    found["versions"] = {"torch": torch.__version__, "python": platform.python_version()}
    jobs = [("recipes", name, name, []) for name in RECIPES]
    jobs += [("page", name, *job) for name, job in PAGE.items()]
    for group, name, recipe, overrides in jobs:
        if name not in found[group]:
            critics = list(CRITICS.values()) if group == "page" and recipe == STAGE_1 else []
            found[group][name] = _entry(recipe, overrides, critics)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
        print(page_row(name, found[group][name]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
