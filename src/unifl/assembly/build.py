"""Everything that a recipe names, put together: data, feedback, the model, and the method that trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from unifl.assembly import levels, resolve, sources
from unifl.assembly.device import chosen_device
from unifl.assembly.locate import locate_lora, locate_model
from unifl.assembly.recipe import Recipe, require_complete, without_idle
from unifl.data.users import UserEmbeddings
from unifl.errors import UserError
from unifl.feedback import Critic, DenoiserConfig, Feedback, LatentProxy, load_proxy
from unifl.feedback.denoiser_perception import DenoiserCritic
from unifl.methods.base import Method, Source
from unifl.methods.finetune import FineTune, FineTuneConfig
from unifl.methods.guided_distillation import GuidedDistillation, GuidedDistillationConfig
from unifl.methods.kto import KTO, KTOConfig
from unifl.methods.lcd import LCD
from unifl.methods.lcd_config import LCDConfig
from unifl.methods.preference import Preference, PreferenceConfig
from unifl.methods.progressive import Progressive, ProgressiveConfig
from unifl.methods.refl import ReFL, ReFLConfig
from unifl.methods.reward_weighted import RewardWeighted, RewardWeightedConfig
from unifl.methods.unifl import UniFL
from unifl.methods.unifl_config import UniFLConfig
from unifl.models import Generator, UserTraining, load_generator, load_user_adapter
from unifl.models.student import start_student
from unifl.sampling import sampling_times

_OF_PICTURES: Mapping[type, Callable[..., Method]] = {
    FineTuneConfig: FineTune,
    GuidedDistillationConfig: GuidedDistillation,
    KTOConfig: KTO,
    ProgressiveConfig: Progressive,
    RewardWeightedConfig: RewardWeighted,
}
"""Methods that take nothing but data, by their config."""


@dataclass(frozen=True)
class Assembled:
    """A recipe with everything it names.

    Attributes:
        recipe: With hinge levels as numbers and the device settled.
        generator: The model.
        method: What trains it.
        rewards: Rewards by name.
        feedback: Frozen networks by kind ("rewards", "critics").
    """

    recipe: Recipe
    generator: Generator
    method: Method
    rewards: Mapping[str, Feedback]
    feedback: Mapping[str, list[nn.Module]]


def assemble(recipe: Recipe, *, device: str | torch.device | None = None) -> Assembled:
    """Everything that a recipe names, cheap checks first: data and feedback before the model is loaded.

    Args:
        recipe: What to build.
        device: Where; None is what the recipe says, a GPU if there is one for "auto".

    Raises:
        UserError: Anything in the recipe that is not there or does not fit.
    """
    recipe = without_idle(recipe)
    require_complete(recipe)
    place = torch.device(device if device is not None else chosen_device(recipe.model.device))
    data = {name: sources.source(given, name=name) for name, given in recipe.data.items()}
    rewards = resolve.rewards(recipe.rewards, device=place)
    critics = {
        name: resolve.critic(given, name=name, device=place)
        for name, given in recipe.critics.items()
        if not isinstance(given, DenoiserConfig)
    }
    discriminator = None
    if recipe.discriminator is not None:
        discriminator = resolve.feedback(recipe.discriminator, name="discriminator", device=place)
    follows = _follows(recipe, place)
    if recipe.levels is not None:
        levels.require_levels(recipe.levels)
    users = None if recipe.users is None else UserEmbeddings.from_path(recipe.users)
    generator = _generator(recipe, place)
    critics |= _own_critics(recipe, generator)
    how = recipe.sampling
    # refuses what the model does not go with
    sampling_times(generator, how.num_steps, how.spacing, how.consistency)
    # rewards see the pictures of pairs at the size at which they will see the model's
    recipe = levels.with_levels(recipe, rewards, device=place, resolution=_side(generator))
    data = {
        name: sources.prepared(
            source,
            recipe.data[name],
            generator,
            name=name,
            seed=recipe.training.seed,
            batch_size=recipe.training.train_batch_size,
        )
        for name, source in data.items()
    }
    method = make_method(recipe, generator, rewards, critics, data, discriminator, *follows, users=users)
    if recipe.model.gradient_checkpointing:
        generator.enable_gradient_checkpointing()
    feedback = {"rewards": resolve.networks_of(rewards), "critics": resolve.networks_of(critics)}
    return Assembled(recipe, generator, method, rewards, feedback)


def _own_critics(recipe: Recipe, generator: Generator) -> dict[str, Critic]:
    """Critics that look with the model itself.

    Raises:
        UserError: See `DenoiserCritic`.
    """
    found: dict[str, Critic] = {}
    for name, given in recipe.critics.items():
        if isinstance(given, DenoiserConfig):
            try:
                found[name] = DenoiserCritic(generator, given, name=name)
            except UserError as error:
                raise UserError(f"critics.{name}: {error}") from error
    return found


def _follows(recipe: Recipe, device: torch.device) -> tuple[LatentProxy | None, Feedback | None]:
    """The latent proxy and its expert.

    Raises:
        UserError: One that no method reads, or that is not there.
    """
    wanted = isinstance(recipe.method, LCDConfig) and recipe.method.proxy is not None
    if not wanted and (recipe.proxy or recipe.expert):
        raise UserError(
            "the recipe names a proxy or its expert, and method.proxy is not set; set it, or name neither"
        )
    proxy = None if recipe.proxy is None else load_proxy(recipe.proxy, device=device)
    expert = None
    if recipe.expert is not None:
        expert = resolve.feedback(recipe.expert, name="expert", device=device)
    return proxy, expert


def _generator(recipe: Recipe, device: torch.device) -> Generator:
    model = recipe.model
    start = locate_model(model.pretrained_model_name_or_path)
    if model.lora is not None and start.lora is not None:
        raise UserError(
            f"model.pretrained_model_name_or_path ({model.pretrained_model_name_or_path}) is a run that trained a "
            "LoRA, and model.lora names another; give one of them"
        )
    generator = load_generator(
        start.source,
        train=model.train,
        roles=(),  # methods ask for those they need
        lora=start.lora if model.lora is None else locate_lora(model.lora),
        device=device,
        dtype=getattr(torch, model.dtype),
        mixed_precision=recipe.training.mixed_precision,
        resolution=model.resolution,
        revision=model.revision,
        variant=model.variant,
        config=model.config,
        seed=recipe.training.seed,
    )
    if start.users is not None:
        if not isinstance(model.train, UserTraining):
            raise UserError(
                f"model.pretrained_model_name_or_path ({model.pretrained_model_name_or_path}) is a run that trained a "
                "user adapter, which goes on with `model.train: {kind: user}` alone; or start from what it started from"
            )
        load_user_adapter(generator, start.users)
    if model.student is not None:
        start_student(generator, _student(model.student))
    return generator


def _student(name: str) -> str:
    found = locate_model(name)
    if found.lora is not None:
        raise UserError(
            f"model.student ({name}) is a LoRA, and all weights train; merge it into a pipeline first "
            "(unifl.models.merged_pipeline)"
        )
    return found.source


def _side(generator: Generator) -> int | None:
    """Pixels along each side of what the model draws; None where that is no square."""
    height, width = generator.image_size
    return height if height == width else None


def make_method(
    recipe: Recipe,
    generator: Generator,
    rewards: Mapping[str, Feedback],
    critics: Mapping[str, Critic],
    sources: Mapping[str, Source],
    discriminator: Feedback | None,
    proxy: LatentProxy | None = None,
    expert: Feedback | None = None,
    users: UserEmbeddings | None = None,
) -> Method:
    """The method of a recipe around objects.

    Raises:
        UserError: Something that the method needs is missing or does not fit; see `UniFL` and `ReFL`.
    """
    if isinstance(recipe.method, ReFLConfig):
        return ReFL(generator, recipe.method, rewards=rewards, sources=sources)
    if isinstance(recipe.method, LCDConfig):
        return LCD(generator, recipe.method, rewards=rewards, proxy=proxy, expert=expert, sources=sources)
    if isinstance(recipe.method, PreferenceConfig):
        return Preference(generator, recipe.method, sources=sources, users=users)
    if type(recipe.method) in _OF_PICTURES:
        return _OF_PICTURES[type(recipe.method)](generator, recipe.method, sources=sources)
    assert isinstance(recipe.method, UniFLConfig)
    return UniFL(
        generator,
        recipe.method,
        rewards=rewards,
        critics=critics,
        sources=sources,
        discriminator=discriminator,
    )
