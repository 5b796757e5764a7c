"""What a recipe would cost, from its configs: no weights, no data, and no GPU are needed.

plan_recipe("sdxl_unifl_stage1_lora", ["model.device=cuda", "model.resolution=768"]).show()

`model.device=cuda` follows the rules of mixed precision on a GPU; they differ from those of the CPU in norms.
The model is one of shapes (`unifl.models.shapes`), pictures are grey, and feedback whose weights are not here is left
out, which `Forecast.left_out` says. Where everything is at hand, `unifl train RECIPE --dry-run` measures instead, on a
GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unifl.assembly import resolve
from unifl.assembly.build import make_method
from unifl.assembly.combined import combined
from unifl.assembly.locate import locate_model
from unifl.assembly.part import Part, as_part
from unifl.assembly.recipe import MethodConfig, Recipe, load_recipe, read_recipe, without_idle
from unifl.data import Batch, Judged, Pair, Sample
from unifl.data.users import UserEmbeddings
from unifl.feedback import DenoiserConfig, Feedback, NetworkFeedback
from unifl.feedback.networks import RewardNetwork
from unifl.methods.kto import KTOConfig
from unifl.methods.preference import PreferenceConfig
from unifl.methods.reward_weighted import RewardWeightedConfig
from unifl.models import make_generator
from unifl.models.generator import Generator
from unifl.models.shapes import require_shapes, shaped_pipeline
from unifl.models.user import UserTraining
from unifl.training.plan import Plan, plan

_USER = "somebody"


@dataclass(frozen=True)
class Forecast:
    """A plan that was made from configs.

    Attributes:
        plan: The cost of the run.
        left_out: What could not be counted, and why.
    """

    plan: Plan
    left_out: list[str]

    def show(self, console: Console | None = None) -> None:
        """Print the plan and what it leaves out."""
        console = console or Console()
        self.plan.show(console)
        for line in self.left_out:
            console.print(f"not counted: {line}", highlight=False, markup=False, soft_wrap=True)


def plan_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    shapes: str | None = None,
    processes: int = 1,
) -> Forecast:
    """Plan a run from the configs of its model.

    Args:
        source: See `load_recipe`.
        overrides: Assignments such as `model.resolution=768`.
        shapes: A family of `unifl.models.shapes.SHAPES` in place of the recipe's model.
        processes: Number of processes of the run.

    Raises:
        UserError: A mistake in the recipe, a family that is not known, or configs that cannot be had.
    """
    if shapes is not None:
        require_shapes(shapes)
    left_out: list[str] = []
    recipe = without_idle(_without_files(read_recipe(source, overrides), left_out))
    generator = _generator(recipe, shapes, left_out)
    height, width = generator.image_size
    rewards = {name: _reward(given, name) for name, given in recipe.rewards.items()}
    critics = {
        name: resolve.critic(given, name=name)
        for name, given in recipe.critics.items()
        if not isinstance(given, DenoiserConfig)  # it has become `Silent`
    }
    silent = [critic for critic in critics.values() if isinstance(critic, Silent)]
    left_out += [f"the critic {critic.name} ({critic.what}), whose weights are not read" for critic in silent]
    discriminator = None
    if recipe.discriminator is not None:
        discriminator = _reward(recipe.discriminator, "discriminator")
    method = make_method(
        recipe,
        generator,
        rewards,
        critics,
        dict.fromkeys(recipe.data, _grey(recipe.method, height, width)),
        discriminator,
        users=_users(recipe),
    )
    if recipe.model.gradient_checkpointing:
        generator.enable_gradient_checkpointing()
    feedback = {"rewards": resolve.networks_of(rewards), "critics": resolve.networks_of(critics)}
    for_gpu = recipe.model.device.startswith("cuda")
    found = plan(method, recipe.training, processes=processes, feedback=feedback, for_gpu=for_gpu)
    return Forecast(found, left_out)


# --- the recipe without what a plan does not read ----------------------------------------------------------


def _without_files(raw: dict[str, Any], left_out: list[str]) -> Recipe:
    """The recipe with nothing to open: no data, levels or proxy, and no critic that names a checkpoint."""
    raw = {**raw, "data": dict.fromkeys(raw.get("data") or {}, "grey"), "validation": None, "monitor": None}
    raw["critics"] = {name: _critic_entry(name, entry) for name, entry in (raw.get("critics") or {}).items()}
    if (raw.get("method") or {}).get("proxy") is not None:
        left_out.append("the latent proxy and its expert, whose weights are not read")
        raw = _without_proxy(raw)
    terms = (raw.get("method") or {}).get("aesthetic")
    if isinstance(terms, dict) and not terms.get("levels") and isinstance(raw.get("levels"), str):
        levels = dict.fromkeys(raw.get("rewards") or {}, 0.0)
        raw["method"] = {**raw["method"], "aesthetic": {**terms, "levels": levels}}
    return load_recipe(raw)


def _without_proxy(raw: dict[str, Any]) -> dict[str, Any]:
    training = dict(raw.get("training") or {})
    given = training.get("optimizers") or {}
    training["optimizers"] = {update: entry for update, entry in given.items() if update != "proxy"}
    method = {**raw["method"], "proxy": None}
    return {**raw, "method": method, "training": training, "proxy": None, "expert": None}


def _critic_entry(name: str, entry: Any) -> Any:
    if not isinstance(entry, dict) or "kind" not in entry:
        return entry
    arguments = {"name": name, "what": " ".join(str(entry[key]) for key in ("kind", "model") if key in entry)}
    return {"path": "unifl.assembly.forecast:Silent", "kwargs": arguments}


def _generator(recipe: Recipe, shapes: str | None, left_out: list[str]) -> Generator:
    model = recipe.model
    if model.lora is not None:
        left_out.append(f"the LoRA {model.lora} that the run starts from")
    source = shapes or locate_model(model.pretrained_model_name_or_path).source
    return make_generator(
        shaped_pipeline(source, dtype=getattr(torch, model.dtype)),
        train=model.train,
        mixed_precision=recipe.training.mixed_precision,
        resolution=model.resolution,
        seed=recipe.training.seed,
    )


# --- feedback ------------------------------------------------------------------------------------------------


class Silent:
    """A critic that judges nothing, in place of one whose weights are not here."""

    needs: frozenset[str] = frozenset()

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.what = what

    def __call__(self, images: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean of each picture: a graph that holds nothing."""
        return images.mean((1, 2, 3))

    def pseudo(self, batch: Batch) -> Batch:
        """The batch as it is."""
        return batch


def _reward(given: str | Part, name: str) -> Feedback:
    """A reward; of a folder, whether or not it is there, one of the shape that `save_family` writes."""
    part = as_part(given)
    if part.parts:
        return combined(part, {key: _reward(one, key) for key, one in part.parts.items()}, name=name)
    if not resolve.is_file(part.path):
        return resolve.feedback(given, name=name)
    return NetworkFeedback(RewardNetwork(), name=name)


def _users(recipe: Recipe) -> UserEmbeddings | None:
    """One user, whose embedding is one vector."""
    train = recipe.model.train
    return (
        UserEmbeddings({_USER: torch.zeros(train.embedding_dim)}) if isinstance(train, UserTraining) else None
    )


def _grey(method: MethodConfig, height: int, width: int) -> list[Any]:
    """Grey rows of the model's size, of the kind that a method reads."""
    grey = torch.full((3, height, width), 0.5)
    if isinstance(method, PreferenceConfig):
        return [Pair("a picture", grey, grey, user=_USER)]
    if isinstance(method, KTOConfig | RewardWeightedConfig):
        return [Judged("a picture", grey, score) for score in (0.0, 1.0)]
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = True
    labels, semantic = torch.zeros(1, dtype=torch.int64), torch.zeros(height, width, dtype=torch.int64)
    return [Sample(grey, "a picture", mask, labels, semantic)]
