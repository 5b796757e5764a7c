"""What the package ships: the pipeline, two of the judges, rewards and critics; and the `world:` names of recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from unifl.errors import UserError, nearest
from unifl.feedback import LayoutCritic, NetworkFeedback, StructureCritic, StyleCritic
from unifl.feedback.networks import RewardNetwork, load_head, load_trunk
from unifl.world.annotated import SceneImages
from unifl.world.annotator import AXES
from unifl.world.critic_fit import critic_networks
from unifl.world.judges import WorldJudge, load_judge_file
from unifl.world.scenes import sample_prompts

ASSETS = Path(__file__).parent / "assets"
PIPELINE = ASSETS / "pipeline"
_TRAIN_SEED = 9


def load_judge(name: Literal["annotator", "validation"]) -> WorldJudge:
    """A judge that may be used while something trains; gold has its own module and guards.

    Raises:
        UserError: Any other name.
    """
    if name not in ("annotator", "validation"):
        raise UserError(
            f"the judge {name!r} cannot be loaded here; take 'validation' to choose settings; "
            "figures of gold come from `unifl evaluate`"
        )
    return load_judge_file(name, ASSETS / "judges" / f"{name}.safetensors")


def load_rewards(folder: Path = ASSETS / "rewards") -> dict[str, NetworkFeedback]:
    """One reward per axis and the global one, around one frozen trunk."""
    trunk = load_trunk(folder)
    return {axis: NetworkFeedback(load_head(RewardNetwork(trunk), folder, axis), name=axis) for axis in AXES}


def hinge_levels(folder: Path = ASSETS / "rewards") -> dict[str, float]:
    """Mean reward of preferred validation pictures, per axis."""
    return {axis: row["level"] for axis, row in json.loads((folder / "levels.json").read_text()).items()}


def load_critics(
    folder: Path = ASSETS / "critics",
) -> dict[str, StructureCritic | LayoutCritic | StyleCritic]:
    """Structure (SOLO), layout (semantic segmentation) and style (Gram matrices), around one frozen trunk."""
    trunk = load_trunk(folder)
    networks = {name: load_head(network, folder, name) for name, network in critic_networks(trunk).items()}
    return {
        "structure": StructureCritic(networks["solo"]),
        "layout": LayoutCritic(networks["semantic"]),
        "style": StyleCritic(networks["style"]),
    }


def baselines() -> dict[str, Any]:
    """The chosen sampler settings of the packaged model: keys "4" and "20"."""
    return json.loads((ASSETS / "baselines.json").read_text())


_SOURCES: dict[str, Callable[[], Any]] = {
    "prompts": lambda: sample_prompts(8000, seed=_TRAIN_SEED, held_out=False),
    "scenes": lambda: SceneImages.sample(4000, seed=_TRAIN_SEED),
    "curated": lambda: SceneImages.sample(3000, seed=_TRAIN_SEED, min_quality=0.7),
}


@lru_cache(maxsize=8)
def load_source(name: str) -> Any:
    """Training data by name: `prompts` (captions), `scenes` (annotated), `curated` (all qualities >= 0.7)."""
    if name not in _SOURCES:
        raise UserError(f"the world has no data {name!r}; did you mean {nearest(name, _SOURCES)!r}?")
    return _SOURCES[name]()
