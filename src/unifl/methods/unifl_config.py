"""Settings of UniFL with the paper's values where it gives any, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from unifl.data import Batch, annotations_of, collate
from unifl.errors import UserError
from unifl.feedback import Critic, Feedback, require_critic_gradient, require_gradient
from unifl.methods.adversarial import AdversarialConfig
from unifl.methods.anchors import AnchorConfig
from unifl.methods.base import Source
from unifl.methods.pictures import DecodeConfig, check_pictures, need, need_source
from unifl.models.generator import Generator
from unifl.sampling import RolloutConfig

# two rollouts that agree on all of these have the same distribution
_SCHEDULE = ("source", "num_steps", "spacing", "guidance", "graded_guidance", "negative_prompt")


@dataclass(kw_only=True)
class PerceptualConfig(RolloutConfig):
    """Perceptual feedback learning: from a real picture, against its annotation."""

    weights: dict[str, float] = field(default_factory=lambda: {"structure": 0.01})
    """Weight of each critic; the paper gives none, 0.01 is ByteEdit's."""
    start: int = 10
    """Steps left (of num_steps) at the state that the picture is diffused to."""
    gt_source: Literal["annotation", "pseudo"] = "annotation"
    """Compare with annotations, or with what the critic itself finds in the real picture."""
    source: str = "images"
    """Annotated pictures."""
    critic_sources: dict[str, str] = field(default_factory=dict)
    """Other sources for some critics; critics of one source share a rollout."""

    def __post_init__(self) -> None:
        self.check("perceptual", start=self.start)
        _check_weights("perceptual.weights", self.weights)
        for name in self.critic_sources:
            need(name, list(self.weights), what="critic", wanted_by="perceptual.critic_sources")


@dataclass(kw_only=True)
class AestheticConfig(RolloutConfig):
    """Decoupled aesthetic feedback: from noise, one hinge per axis."""

    levels: dict[str, float] = field(default_factory=dict)
    """Hinge level of each reward on its own scale: the mean of preferred validation samples."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of single axes, 1 unless named; 0 leaves an axis out."""
    weight: float = 1e-3
    """Weight of the whole term; the paper gives none, 1e-3 is that of ReFL's code."""
    source: str = "prompts"
    """Where prompts come from; captions of annotated pictures do as well."""

    def __post_init__(self) -> None:
        self.check("aesthetic")
        _check_weights("aesthetic.weights", self.weights)
        _check_weights("aesthetic", {"weight": self.weight})
        if not self.levels:
            raise UserError("aesthetic.levels is empty; give each reward its level, for example {color: 1.8}")
        for axis in self.weights:
            need(axis, list(self.levels), what="axis", wanted_by="aesthetic.weights")


@dataclass(kw_only=True)
class UniFLConfig:
    """Stage 1 is perceptual and aesthetic feedback, stage 2 adversarial and aesthetic; any subset works."""

    kind: Literal["unifl"] = "unifl"
    perceptual: PerceptualConfig | None = None
    """Off when null."""
    aesthetic: AestheticConfig | None = None
    """Off when null."""
    adversarial: AdversarialConfig | None = None
    """Off when null."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Terms that hold the student near its start; the paper has none."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Memory of the decoder."""

    def __post_init__(self) -> None:
        self.anchors.check("anchors")
        if not (self.critics or self.axes or self.adversarial_on):
            raise UserError(
                "no feedback is on; set perceptual, aesthetic or adversarial, with a weight above 0"
            )

    @property
    def critics(self) -> list[str]:
        """Critics that count."""
        return (
            []
            if self.perceptual is None
            else [n for n, weight in self.perceptual.weights.items() if weight > 0]
        )

    @property
    def critics_by_source(self) -> dict[str, list[str]]:
        """The critics of each source of pictures."""
        groups: dict[str, list[str]] = {}
        for name in self.critics:
            assert self.perceptual is not None
            groups.setdefault(self.perceptual.critic_sources.get(name, self.perceptual.source), []).append(
                name
            )
        return groups

    @property
    def axes(self) -> list[str]:
        """Rewards that count."""
        term = self.aesthetic
        if term is None or term.weight == 0:
            return []
        return [axis for axis in term.levels if term.weights.get(axis, 1.0) > 0]

    @property
    def adversarial_on(self) -> bool:
        """Whether the adversarial term counts."""
        return self.adversarial is not None and self.adversarial.weight > 0

    @property
    def trains_discriminator(self) -> bool:
        """Whether there is a second update."""
        return self.adversarial is not None and self.adversarial_on and self.adversarial.train_discriminator

    @property
    def shares_rollout(self) -> bool:
        """Whether the aesthetic term may read the adversarial pictures, because its own would be drawn alike."""
        a, b = self.aesthetic, self.adversarial
        if a is None or b is None or not self.axes or not self.adversarial_on:
            return False
        if b.start != "noise" or b.phases:
            return False
        same = all(getattr(a, name) == getattr(b, name) for name in _SCHEDULE)
        return same and a.stop_range(a.num_steps) == b.stop_range(b.num_steps)

    @property
    def sources(self) -> list[str]:
        """Names of the data that active terms draw from."""
        names = set(self.critics_by_source)
        if self.axes and self.aesthetic is not None:
            names.add(self.aesthetic.source)
        if self.adversarial_on and self.adversarial is not None:
            names.add(self.adversarial.source)
        if self.anchors.denoising_weight > 0:
            names.add(self.anchors.source)
        return sorted(names)


def check_parts(
    generator: Generator,
    config: UniFLConfig,
    rewards: Mapping[str, Feedback],
    critics: Mapping[str, Critic],
    sources: Mapping[str, Source],
    discriminator: Feedback | None,
) -> None:
    """Check what is handed to `UniFL` before anything is computed with it.

    Raises:
        UserError: See `UniFL`.
    """
    generator.check_decode(config.decode.dtype)
    example = torch.full((1, 3, *generator.image_size), 0.5, device=generator.device)
    for axis in config.axes:
        need(axis, list(rewards), what="reward", wanted_by="aesthetic.levels")
        require_gradient(rewards[axis], method="aesthetic feedback", example=example)
    for name in config.critics:
        need(name, list(critics), what="critic", wanted_by="perceptual.weights")
    if config.adversarial_on:
        if discriminator is None:
            raise UserError(
                "adversarial feedback needs a reward to start its discriminator from; "
                "pass `discriminator`, for example the reward of the detail axis, or set adversarial to null"
            )
        require_gradient(discriminator, method="adversarial feedback", example=example)
    for name in config.sources:
        need_source(name, sources, wanted_by="the config")
    for name in _picture_sources(config):
        check_pictures(name, sources[name], generator.image_size)
    for source, names in config.critics_by_source.items():
        for name in names:
            _check_annotations(config, critics[name], source, sources[source])
            _check_critic_gradient(config, critics[name], sources[source], generator.device)


def _picture_sources(config: UniFLConfig) -> list[str]:
    names = set(config.critics_by_source)
    if config.adversarial_on and config.adversarial is not None:
        names.add(config.adversarial.source)
    if config.anchors.denoising_weight > 0:
        names.add(config.anchors.source)
    return sorted(names)


def _check_annotations(config: UniFLConfig, critic: Critic, source: str, data: Source) -> None:
    assert config.perceptual is not None
    missing = (critic.needs & {"masks", "semantic"}) - annotations_of(data)
    if missing and config.perceptual.gt_source == "annotation":
        raise UserError(
            f"the critic {critic.name!r} needs {', '.join(sorted(missing))}, which the source {source!r} does not "
            "have; annotate it, or set perceptual.gt_source=pseudo to compare with what the critic finds itself"
        )


def _check_critic_gradient(config: UniFLConfig, critic: Critic, data: Source, device: torch.device) -> None:
    assert config.perceptual is not None
    batch = collate([data[0]]).to(device)
    if config.perceptual.gt_source == "pseudo":
        batch = critic.pseudo(batch)
    elif counts := getattr(data, "label_counts", {}):
        with torch.no_grad():
            critic(batch.images, _with_last_labels(batch, counts))
    require_critic_gradient(critic, batch)


def _with_last_labels(batch: Batch, counts: Mapping[str, int]) -> Batch:
    """The batch with the highest label that its source may hold: a critic that does not know it says so at once.

    Args:
        batch: One picture.
        counts: Number of labels in the source by "masks" and "semantic", where it knows them.
    """
    if batch.masks is not None and counts.get("masks"):
        everything = batch.images.new_ones((1, *batch.images.shape[-2:]), dtype=torch.bool)
        label = torch.tensor([counts["masks"] - 1], device=batch.images.device)
        batch = batch.with_instances([everything], [label])
    if batch.semantic is not None and counts.get("semantic"):
        batch = batch.with_semantic(torch.full_like(batch.semantic, counts["semantic"] - 1))
    return batch


def _check_weights(place: str, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise UserError(f"{place}.{name} is {weight}; it must be 0 or more")
