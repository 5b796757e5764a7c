"""The strongest setting of a model at each number of steps, chosen by the validation judge and recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from unifl.models import Generator
from unifl.process import Spacing
from unifl.sampling import sample
from unifl.world.annotator import overall
from unifl.world.judges import WorldJudge

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
SPACINGS: tuple[Spacing, ...] = ("leading", "trailing")


@dataclass(frozen=True)
class Setting:
    """How a model is sampled, and the validation judge's mean overall score there, in [0, 1]."""

    num_steps: int
    guidance: float
    spacing: Spacing
    overall: float
    alignment: float


def best_setting(
    generator: Generator,
    judge: WorldJudge,
    prompts: Sequence[str],
    *,
    num_steps: int,
    seed: int,
    role: str = "student",
    guidances: Sequence[float] = GUIDANCE,
    progress: Callable[[Setting], None] | None = None,
) -> tuple[Setting, list[Setting]]:
    """Try every guidance with both spacings on the same prompts and noise.

    Returns:
        the best setting by mean overall score, and all of them.
    """
    tried = []
    for spacing in SPACINGS:
        for guidance in guidances:
            images = sample(
                generator,
                prompts,
                seed=seed,
                num_steps=num_steps,
                guidance=guidance,
                spacing=spacing,
                role=role,
            )
            scores = judge(images, prompts)
            value, aligned = float(overall(scores).mean()), float(scores["alignment"].mean())
            tried.append(Setting(num_steps, guidance, spacing, value, aligned))
            if progress is not None:
                progress(tried[-1])
    return max(tried, key=lambda s: s.overall), tried


def as_json(best: Setting, tried: Sequence[Setting]) -> dict[str, object]:
    """One record of `baselines.json`."""
    return {"best": asdict(best), "tried": [asdict(setting) for setting in tried]}


def early_pictures(
    generator: Generator, prompts: Sequence[str], *, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures of every prompt, in a dozen steps, without and with guidance, for people to compare."""
    first = sample(generator, prompts, seed=seed, num_steps=12, guidance=1.0, spacing="trailing")
    second = sample(generator, prompts, seed=seed + 1, num_steps=12, guidance=2.0, spacing="trailing")
    # Which of the two had guidance must not be readable from the order.
    swap = torch.rand(len(prompts), generator=torch.Generator().manual_seed(seed)) < 0.5
    mask = swap[:, None, None, None]
    return torch.where(mask, second, first), torch.where(mask, first, second)
