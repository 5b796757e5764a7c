"""A recipe: one YAML file that says what trains, on which judgement and data, for how long, and where to.

Everything in it is a name or a number; `unifl.assembly.resolve` turns names into objects when a run is put
together. Unknown keys are errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from unifl import config as configs
from unifl.assembly.monitor_config import MonitorConfig
from unifl.assembly.part import Part as Part
from unifl.assembly.preferences_config import DataConfig
from unifl.errors import UserError, nearest
from unifl.feedback.perception_config import (
    DenoiserConfig,
    DepthConfig,
    EdgesConfig,
    InstancesConfig,
    SemanticConfig,
    StyleConfig,
)
from unifl.methods.finetune import FineTuneConfig
from unifl.methods.guided_distillation import GuidedDistillationConfig
from unifl.methods.kto import KTOConfig
from unifl.methods.lcd_config import LCDConfig
from unifl.methods.preference import PreferenceConfig
from unifl.methods.progressive import ProgressiveConfig
from unifl.methods.refl import ReFLConfig
from unifl.methods.reward_weighted import RewardWeightedConfig
from unifl.methods.unifl_config import UniFLConfig
from unifl.models.load import FullTraining
from unifl.models.lora import LoraTraining
from unifl.models.user import UserTraining
from unifl.process import ConsistencySampler, Spacing
from unifl.training.config import TrainingConfig

MethodConfig = (
    UniFLConfig
    | ReFLConfig
    | FineTuneConfig
    | LCDConfig
    | GuidedDistillationConfig
    | ProgressiveConfig
    | PreferenceConfig
    | KTOConfig
    | RewardWeightedConfig
)
"""Settings of a method, told apart by their `kind`."""

OPEN = "???"
"""What a recipe has where only the user knows what to write: paths of data."""


@dataclass(kw_only=True)
class ModelConfig:
    """What training starts from, and which weights train."""

    pretrained_model_name_or_path: str
    """A diffusers folder, a hub name, a .safetensors file, the folder of an earlier run, or `world:pipeline`."""
    lora: str | None = None
    """A LoRA to start from (file, folder, hub name, or the folder of an earlier run)."""
    student: str | None = None
    """With `kind: full`: what the student starts from in place of its teacher, named as models are; of equal shape."""
    train: LoraTraining | FullTraining | UserTraining = field(default_factory=LoraTraining)
    """`kind: lora`, `kind: full`, or `kind: user`: attention to embeddings of users, for `kind: preference`."""
    gradient_checkpointing: bool = False
    """Recompute activations during backward: less memory, more time."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of frozen weights."""
    device: str = "auto"
    """Such as "cpu" or "cuda:1"; "auto" is what accelerate gives this process."""
    resolution: int | None = None
    """Pixels; null is the size that the model was trained at."""
    revision: str | None = None
    """Of a hub repository."""
    variant: str | None = None
    """Of the weight files, such as "fp16"."""
    config: str | None = None
    """For a single file: a folder or hub name of its family, whose tokenizers and configs are read."""

    def __post_init__(self) -> None:
        if self.student is not None and not isinstance(self.train, FullTraining):
            raise UserError(
                "model.student is for `train: {kind: full}`; a LoRA that training starts from is named by model.lora"
            )


@dataclass(kw_only=True)
class SamplingConfig:
    """How the trained model is meant to be sampled: for previews, validation, its card and `unifl generate`."""

    num_steps: int = 20
    """Network evaluations per picture."""
    guidance: float = 1.0
    """w of u + w (c - u); 1 is none."""
    spacing: Spacing = "trailing"
    """Timesteps of the schedule; the default is that of the method's terms."""
    consistency: ConsistencySampler | None = None
    """For consistency models, in place of DDIM: `kind: lcm` or `kind: tcd`, whose timesteps are their own."""
    negative_prompt: str | None = None
    """null takes what the pipeline takes when it is given none."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"sampling.num_steps is {self.num_steps}; it must be at least 1")
        if not self.guidance >= 0:
            raise UserError(f"sampling.guidance is {self.guidance}; it must be 0 or more (1 is no guidance)")
        if self.consistency is not None:
            self.consistency.times(self.num_steps)

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `unifl.sampling.sample`."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(kw_only=True)
class ValidationConfig:
    """A judge that looks at the model now and then; its scores stand beside the rewards in the report."""

    judge: str = "world:judges/validation"
    """`world:judges/validation`, or `package.module:name` of a judge. Never the one that gives final figures."""
    prompts: str = "world:validation"
    """As in `data`."""
    num_prompts: int = 64
    """The first so many of them."""
    every: int = 10
    """Training steps from one look to the next; the start and the end are always judged."""

    def __post_init__(self) -> None:
        for name in ("num_prompts", "every"):
            if getattr(self, name) < 1:
                raise UserError(f"validation.{name} is {getattr(self, name)}; it must be at least 1")
        if self.judge == "world:judges/gold":
            raise UserError(
                "validation.judge is the gold judge, which gives final figures and nothing else; "
                "use world:judges/validation"
            )


@dataclass(kw_only=True)
class Recipe:
    """A whole run."""

    output_dir: str
    """Folder of the run."""
    model: ModelConfig
    """What it starts from."""
    method: MethodConfig
    """`kind:` unifl, refl, finetune, lcd, guided_distillation, progressive, preference, kto or reward_weighted, with
    the settings of that method."""
    rewards: dict[str, str | Part] = field(default_factory=dict)
    """Rewards by the name that the method calls them: `world:rewards/color`, `scorer:pickscore`, a folder,
    `package.module:name`."""
    levels: str | None = None
    """Where hinge levels come from if `method.aesthetic.levels` gives none: `world:levels`, a JSON file
    {axis: level}, or a folder of preference pairs, whose preferred pictures every reward then scores."""
    critics: dict[
        str,
        str
        | Part
        | InstancesConfig
        | SemanticConfig
        | DepthConfig
        | EdgesConfig
        | StyleConfig
        | DenoiserConfig,
    ] = field(default_factory=dict)
    """Critics by name: `world:critics/structure`, `package.module:name`, `kind: instances` (semantic, depth, edges,
    style) with a checkpoint and its settings, or `kind: denoiser`, which looks with the model itself."""
    discriminator: str | Part | None = None
    """The reward that the discriminator starts from."""
    proxy: str | None = None
    """The latent proxy that `method.proxy` trains: a folder that `save_proxy` wrote."""
    expert: str | Part | None = None
    """The reward that it follows, with or without a gradient."""
    data: dict[str, DataConfig] = field(default_factory=dict)
    """Sources by name: `world:prompts`, `world:scenes`, a file of prompts, a folder of annotated pictures, `kind: coco`
    with COCO's files, `kind: pictures` with captions in any form, in buckets, encoded once, or `kind: preferences` with
    pairs that people judged."""
    users: str | None = None
    """Embeddings of the users who chose, for `model.train: {kind: user}`: a file or folder that
    `UserEmbeddings.from_path` reads."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch size, optimisers, checkpoints."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the result is sampled."""
    validation: ValidationConfig | None = None
    """Off when null."""
    monitor: MonitorConfig | None = None
    """Watches for over-optimisation, and may end the run; off when null."""
    save_pipeline: bool = False
    """After LoRA training, write the complete pipeline beside the LoRA, as `model/pipeline`."""

    def __post_init__(self) -> None:
        if self.monitor is not None:
            self.monitor.check(self.rewards)
        self._check_users()

    def _check_users(self) -> None:
        trains = isinstance(self.model.train, UserTraining)
        if trains and not isinstance(self.method, PreferenceConfig):
            raise UserError(
                f"model.train is `kind: user`, and {self.method.kind} reads no users; use it with "
                "`method: {kind: preference}`, or train a LoRA"
            )
        if trains != (self.users is not None):
            raise UserError(
                "`model.train: {kind: user}` and `users`, the embeddings of those who chose, go together; set both, or "
                "neither"
            )


def load_recipe(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, base: Path | None = None
) -> Recipe:
    """Read a recipe.

    Args:
        source: A YAML file, the name of a recipe that comes with the package ("refl"), YAML text, or a mapping.
        overrides: Assignments such as `training.max_train_steps=10`.
        base: Where recipes by name are; the package's own by default.

    Raises:
        UserError: No such file, an unknown key (with the nearest valid one), or a value that makes no sense.
    """
    raw = read_recipe(source, overrides, base=base)
    if isinstance(raw.get("levels"), str) and _lacks_levels(raw):
        # settled by `levels.with_levels`; a level that slipped through unsettled would stop the run as NaN
        raw["method"]["aesthetic"]["levels"] = dict.fromkeys(raw.get("rewards") or {}, math.nan)
    return configs.load(raw, Recipe)


def read_recipe(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, base: Path | None = None
) -> dict[str, Any]:
    """The entries of a recipe with overrides, before anything of them is checked; see `load_recipe`."""
    if isinstance(source, str | Path) and "\n" not in str(source) and ": " not in str(source):
        source = find_recipe(source, base or recipes_folder())
    return configs.load(source, dict, overrides)


def without_idle(recipe: Recipe) -> Recipe:
    """The recipe without critics of weight 0, and without the data that only those would read."""
    method = recipe.method
    if not isinstance(method, UniFLConfig) or method.perceptual is None:
        return recipe
    term = method.perceptual
    idle = {name for name, weight in term.weights.items() if weight == 0}
    unread = {term.critic_sources.get(name, term.source) for name in idle} - set(method.sources)
    return replace(
        recipe,
        critics={name: critic for name, critic in recipe.critics.items() if name not in idle},
        data={name: data for name, data in recipe.data.items() if name not in unread},
    )


def require_complete(recipe: Recipe) -> None:
    """Refuse a recipe in which places are still open.

    Raises:
        UserError: With the overrides that fill them.
    """
    open_places = _open_places(configs.plain(recipe), "")
    if open_places:
        wanted = " ".join(f"{place}=..." for place in open_places)
        raise UserError(
            f"the recipe leaves {len(open_places)} place(s) open ({OPEN}); name your files on the command line: "
            f"{wanted}"
        )


def _open_places(value: Any, path: str) -> list[str]:
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
        return [place for name, item in items for place in _open_places(item, name)]
    return [path] if value == OPEN else []


def _lacks_levels(raw: Mapping[str, Any]) -> bool:
    method = raw.get("method")
    term = method.get("aesthetic") if isinstance(method, dict) else None
    return isinstance(term, dict) and not term.get("levels")


def find_recipe(name: str | Path, base: Path) -> Path:
    """A file as it is, or a recipe of the package by its name.

    Raises:
        UserError: There is neither; with the nearest name.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.yaml").is_file():
            return path / "config.yaml"
        raise UserError(f"{path} is a folder without a config.yaml; give a recipe, or the folder of a run")
    if path.exists():
        return path
    known = sorted(file.stem for file in base.glob("*.yaml"))
    if path.stem in known and path.suffix in ("", ".yaml") and len(path.parts) == 1:
        return base / f"{path.stem}.yaml"
    guess = nearest(path.stem, known)
    hint = f"did you mean {guess!r}?" if guess else f"recipes that come with the package: {', '.join(known)}"
    raise UserError(f"no recipe at {name}; {hint}")


def recipes_folder() -> Path:
    """The recipes that come with the package: inside it once installed, at the top of a source checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"
