"""What the benchmark trains: which methods, on which model, feedback and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unifl.feedback import Critic, Feedback
from unifl.methods.adversarial import AdversarialConfig
from unifl.methods.refl import ReFL, ReFLConfig
from unifl.methods.unifl import UniFL
from unifl.methods.unifl_config import AestheticConfig, PerceptualConfig, UniFLConfig
from unifl.models.load import load_pipeline, make_generator
from unifl.models.lora import LoraTraining

CaseConfig = ReFLConfig | UniFLConfig

ROWS = 128
"""Rows of each source that are used: few enough that every prompt is encoded before the clock starts."""

_SEED = 5
_AXES = ("color", "layout", "lighting", "detail")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that the methods of a benchmark are put together from.

    Attributes:
        name: What it is, for the record.
        pipeline: Loads a fresh pipeline; called once per case.
        rewards: By the names that the cases use.
        critics: Likewise.
        discriminator: The reward that the discriminator starts from; None where no case has one.
        sources: `images` (annotated) and `prompts`.
    """

    name: str
    pipeline: Callable[[], Any]
    rewards: Mapping[str, Feedback]
    critics: Mapping[str, Critic]
    discriminator: Feedback | None
    sources: Mapping[str, Any]


class FirstRows(Sequence[Any]):
    """The first `ROWS` rows of a source, still loaded by the source itself whenever a step asks for one."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return min(ROWS, len(self._source))

    def __getitem__(self, index: Any) -> Any:
        return self._source[index]


def world_parts() -> Parts:
    """The packaged pipeline with its rewards and critics, on scenes of the embedded world."""
    # here, because the benchmark can also be run on parts of one's own
    from unifl.world.annotated import SceneImages
    from unifl.world.assets import PIPELINE, load_critics, load_rewards
    from unifl.world.scenes import sample_prompts

    rewards = load_rewards()
    return Parts(
        name="world",
        pipeline=lambda: load_pipeline(PIPELINE),
        rewards=rewards,
        critics=load_critics(),
        discriminator=rewards["detail"],
        sources={
            "images": SceneImages.sample(ROWS, seed=_SEED),
            "prompts": sample_prompts(ROWS, seed=_SEED, held_out=False),
        },
    )


def published_cases() -> dict[str, CaseConfig]:
    """ReFL and both stages of UniFL with the schedules of their papers and all feedback on.

    Levels and weights are arbitrary: they change no evaluation.
    """
    axes = AestheticConfig(levels=dict.fromkeys(_AXES, 1.0))
    critics = dict.fromkeys(("structure", "layout", "style"), 0.01)
    return {
        "refl": ReFLConfig(reward="global"),
        "unifl-stage1": UniFLConfig(perceptual=PerceptualConfig(weights=critics), aesthetic=axes),
        "unifl-stage2": UniFLConfig(adversarial=AdversarialConfig(), aesthetic=axes),
    }


def make_method(parts: Parts, config: CaseConfig) -> ReFL | UniFL:
    """A method on a fresh pipeline with a LoRA of the default size."""
    generator = make_generator(parts.pipeline(), train=LoraTraining(), roles=(), source=parts.name)
    sources = {name: FirstRows(source) for name, source in parts.sources.items()}
    if isinstance(config, ReFLConfig):
        return ReFL(generator, config, rewards=parts.rewards, sources=sources)
    return UniFL(
        generator,
        config,
        rewards=parts.rewards,
        critics=parts.critics,
        sources=sources,
        discriminator=parts.discriminator,
    )
