"""Critics by the name or folder of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unifl.errors import UserError
from unifl.feedback.base import Critic
from unifl.feedback.critics import LayoutCritic, StructureCritic, StyleCritic
from unifl.feedback.networks import SoloNetwork, load_head, load_trunk, read_head
from unifl.feedback.perception import DepthCritic, EdgeCritic, QueryCritic
from unifl.feedback.perception_config import (
    CriticConfig,
    DepthConfig,
    EdgesConfig,
    InstancesConfig,
    SemanticConfig,
    StyleConfig,
)
from unifl.feedback.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from unifl.feedback.pretrained import PretrainedNetwork, load_checkpoint
from unifl.feedback.vgg import load_vgg16

SOLO_FILE = "solo.safetensors"

ANSWERS: dict[str, Callable[[Any], Any]] = {
    "instances": lambda output: (output.class_queries_logits, output.masks_queries_logits),
    "semantic": lambda output: output.logits,
    "depth": lambda output: output.predicted_depth,
    "backbone": lambda output: output.feature_maps,
    "vgg16": list,
}
"""What is used of a network's answer."""


def open_critic(config: CriticConfig, *, name: str) -> Critic:
    """Load what a critic looks with, frozen and in evaluation mode.

    Args:
        config: Which critic, and how it looks.
        name: What losses and metrics are called after.

    Raises:
        UserError: See `unifl.feedback.pretrained.load_checkpoint` and `unifl.feedback.vgg.load_vgg16`.
    """
    if isinstance(config, InstancesConfig):
        return _instances(config, name)
    if isinstance(config, SemanticConfig):
        model, preprocessing = load_checkpoint(config.model, "semantic", revision=config.revision)
        network = _network(config, model, preprocessing, "semantic")
        return LayoutCritic(network, name=name, checkpointing=config.checkpointing)
    if isinstance(config, DepthConfig):
        model, preprocessing = load_checkpoint(config.model, "depth", revision=config.revision)
        network = _network(config, model, preprocessing, "depth")
        return DepthCritic(
            network,
            name=name,
            gradient_weight=config.gradient_weight,
            checkpointing=config.checkpointing,
        )
    if isinstance(config, EdgesConfig):
        return EdgeCritic(name=name, sigma=config.sigma, threshold=config.threshold)
    return _style(config, name)


def _instances(config: InstancesConfig, name: str) -> Critic:
    folder = Path(config.model).expanduser()
    if (folder / SOLO_FILE).is_file():
        if config.size is not None or config.checkpointing or config.num_categories is not None:
            raise UserError(
                f"{folder} holds a SOLO, which looks at pictures as they are; leave out size, checkpointing and "
                "num_categories"
            )
        categories = read_head(folder, "solo")["category.1.weight"].shape[0]
        solo = load_head(SoloNetwork(load_trunk(folder), categories), folder, "solo")
        return StructureCritic(solo, name=name, score_threshold=config.score_threshold)
    model, preprocessing = load_checkpoint(config.model, "instances", revision=config.revision)
    settings: Any = model.config
    labels = int(settings.num_labels)
    if config.num_categories is not None and config.num_categories > labels:
        raise UserError(
            f"num_categories is {config.num_categories}, but {config.model} has {labels} categories"
        )
    return QueryCritic(
        _network(config, model, preprocessing, "instances"),
        name=name,
        reading=config.reading,
        num_categories=config.num_categories,
        score_threshold=config.score_threshold,
        checkpointing=config.checkpointing,
    )


def _style(config: StyleConfig, name: str) -> Critic:
    if config.network == "vgg16":
        model: Any = load_vgg16(config.model, config.layers, revision=config.revision)
        preprocessing = Preprocessing(model=config.model, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        network = _network(config, model, preprocessing, "vgg16")
        return StyleCritic(network, name=name, checkpointing=config.checkpointing)
    model, read = load_checkpoint(config.model, "backbone", revision=config.revision, layers=config.layers)
    # at the picture's own size: strokes and texture are what style is about
    preprocessing = Preprocessing(model=config.model, mean=read.mean, std=read.std, multiple=read.multiple)
    network = _network(config, model, preprocessing, "backbone")
    return StyleCritic(network, name=name, checkpointing=config.checkpointing)


def _network(
    config: InstancesConfig | SemanticConfig | DepthConfig | StyleConfig,
    model: Any,
    preprocessing: Preprocessing,
    answer: str,
) -> PretrainedNetwork:
    return PretrainedNetwork(model, preprocessing.at(config.size), ANSWERS[answer])
