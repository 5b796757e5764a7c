"""How far a model's pictures have moved from those of the model that it started from, on equal prompts and noise.

A `Reading` is what is known of one model's pictures; `drift` sets one beside that of the start. Of the start it is
kept as a file, so that a run that was interrupted goes on measuring from the same.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unifl.disk import read_arrays, write_atomically
from unifl.errors import UserError
from unifl.feedback import Feedback
from unifl.metrics.diversity import seed_diversity
from unifl.metrics.spectrum import high_frequency_share

_HIGH, _DIVERSITY = "high_frequency", "diversity"


@dataclass(frozen=True)
class Reading:
    """What was measured on the pictures of one model.

    Attributes:
        pictures: (n, 3, h, w), in eight bits, as they would be saved.
        numbers: `high_frequency`, the mean share of energy above the cut; `diversity`, the mean root-mean-square
            difference between pictures of one prompt, if there are several; and the mean of each reward.
    """

    pictures: UInt8[Tensor, "n 3 h w"]
    numbers: dict[str, float]

    def save(self, path: Path, about: Any) -> None:
        """Write it as one file.

        Args:
            path: File to write; it appears complete.
            about: Plain values on which the reading depends, see `load`.
        """
        buffer = io.BytesIO()
        text = json.dumps({"about": about, "numbers": self.numbers})
        np.savez_compressed(buffer, pictures=self.pictures.numpy(), text=np.array(text))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, about: Any) -> Reading | None:
        """Read a file; None if it is not there, is damaged, or was saved with another `about`."""
        try:
            file = read_arrays(path, "text", "pictures")
            text = json.loads(str(file["text"]))
        except ValueError:
            return None
        return cls(torch.from_numpy(file["pictures"]), text["numbers"]) if text["about"] == about else None


@torch.no_grad()
def take_reading(
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    rewards: Mapping[str, Feedback],
    *,
    samples: int,
    cut: float,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> Reading:
    """Measure pictures.

    Args:
        images: In [0, 1], the samples of a prompt one after the other.
        prompts: The prompt of each picture.
        rewards: Rewards that read pixels, by the name that their mean gets.
        samples: Pictures of each prompt.
        cut: See `high_frequency_share`.
        batch_size: Pictures per call of the rewards.
        device: Where the rewards are.

    Raises:
        UserError: A reward does not give one finite number per picture.
    """
    shares = torch.cat([high_frequency_share(some, cut) for some in images.split(batch_size)])
    numbers = {_HIGH: float(shares.mean())}
    if samples > 1:
        # prompt by prompt: the distances are taken in float64, which of large pictures is much
        spread = [seed_diversity(some.flatten(1)[None])[0] for some in images.split(samples)]
        numbers[_DIVERSITY] = float(np.mean(spread)) / math.sqrt(images[0].numel())
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    for start in range(0, len(images), batch_size):
        # one tensor for all rewards: those that share a trunk then run it once
        some = images[start : start + batch_size].to(device)
        texts = list(prompts[start : start + batch_size])
        for name, reward in rewards.items():
            scores[name].append(_scores(name, reward, some, texts))
    numbers |= {name: float(torch.cat(values).mean()) for name, values in scores.items()}
    return Reading(images.clamp(0, 1).mul(255).round().byte(), numbers)


def drift(now: Reading, start: Reading) -> dict[str, float]:
    """What has changed since the start.

    Returns:
        `high_frequency` now and `high_frequency_ratio` to the start; `base_distance`, the root-mean-square pixel
        difference (of 1, after rounding to eight bits) of pictures of equal noise, averaged over pictures;
        `diversity_ratio` to the start where prompts have several pictures; each reward, and its `<kind>_change`.
    """
    found = {
        _HIGH: now.numbers[_HIGH],
        "high_frequency_ratio": now.numbers[_HIGH] / start.numbers[_HIGH],
        "base_distance": float(
            np.mean([_rms(*pair) for pair in zip(now.pictures, start.pictures, strict=True)])
        ),
    }
    for name, value in now.numbers.items():
        if name == _DIVERSITY:
            found["diversity_ratio"] = value / start.numbers[name]
        elif name != _HIGH:
            kind, _, reward = name.partition("/")
            found[name] = value
            found[f"{kind}_change/{reward}"] = value - start.numbers[name]
    return found


def require_scale(start: Reading) -> None:
    """Refuse pictures of a start in units of which nothing can be expressed.

    Raises:
        UserError: They have no energy above the cut, or do not depend on the noise.
    """
    if start.numbers[_HIGH] == 0:
        raise UserError(
            "pictures of the start model have no detail above monitor.cut to take a ratio to; lower monitor.cut"
        )
    if start.numbers.get(_DIVERSITY) == 0:
        raise UserError(
            "the start model draws one picture of a prompt whatever the noise, so there is no ratio to its diversity; "
            "set monitor.seeds=1"
        )


def _scores(name: str, reward: Feedback, images: Tensor, prompts: list[str]) -> Tensor:
    scores = reward(images, prompts)
    if scores.shape != (len(images),):
        raise UserError(
            f"the reward {name} returned shape {tuple(scores.shape)} for {len(images)} pictures of the monitor; it "
            "must return one score per picture"
        )
    if not bool(scores.isfinite().all()):
        raise UserError(
            f"the reward {name} returned NaN or infinity for a picture of the monitor; check it, or leave it out of "
            "monitor.rewards"
        )
    return scores.cpu().double()


def _rms(a: UInt8[Tensor, "3 h w"], b: UInt8[Tensor, "3 h w"]) -> float:
    return float((a.double() - b.double()).div(255).square().mean().sqrt())
