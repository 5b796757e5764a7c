"""What an audit sees of one checkpoint: its pictures, and numbers of each; a file, so that the audit can go on."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unifl.disk import read_arrays, write_atomically
from unifl.feedback.black_box import require_scores
from unifl.metrics.diversity import seed_diversity
from unifl.metrics.saturation import mean_saturation
from unifl.metrics.spectrum import high_frequency_share

REWARD, HELD_OUT = "reward/", "held_out/"
"""Beginnings of the names of scores that train, and of those that do not."""
PATH_KL, DISTANCE = "path_kl", "base_distance"
SIGNS = ("high_frequency", "saturation", "diversity")
"""What is shown beside, and decides nothing."""
_NUMBER = "number:"

Scorer = Callable[[Tensor, list[str]], Tensor]
"""Pictures (b, 3, h, w) in [0, 1] and their prompts to one finite score per picture."""


@dataclass(frozen=True)
class AuditLook:
    """One checkpoint.

    Attributes:
        pictures: In eight bits, the samples of a prompt together.
        numbers: By name: scores, `high_frequency`, `saturation` and `base_distance` of each picture; `diversity`, the
            root-mean-square difference between pictures of a prompt, of each prompt where there are several; `path_kl`
            in nats of as many pictures as it was estimated on (`base_distance` and `path_kl` are 0 for the start).
    """

    pictures: UInt8[Tensor, "n 3 h w"]
    numbers: dict[str, Float[np.ndarray, " k"]]

    def scores(self, kind: str) -> dict[str, Float[np.ndarray, " n"]]:
        """Those that train (`REWARD`) or do not (`HELD_OUT`), by name."""
        return {
            name.removeprefix(kind): values for name, values in self.numbers.items() if name.startswith(kind)
        }

    @property
    def drift(self) -> float:
        """Root of the mean divergence from the start."""
        return math.sqrt(max(float(self.numbers[PATH_KL].mean()), 0.0))

    def first(self, number: int) -> AuditLook:
        """The same numbers with the first pictures alone, which of many large ones fit in memory."""
        return replace(self, pictures=self.pictures[:number].clone())

    def save(self, path: Path, about: Any) -> None:
        """Write it as one file.

        Args:
            path: File to write; it appears complete.
            about: Plain values on which it depends, see `load`.
        """
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"{_NUMBER}{name}": values for name, values in self.numbers.items()}
        np.savez_compressed(
            buffer, pictures=self.pictures.numpy(), about=np.array(json.dumps(about)), **arrays
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, about: Any) -> AuditLook | None:
        """Read a file; None if it is not there, is damaged, or was saved with another `about`."""
        try:
            file = read_arrays(path)
            known = json.loads(str(file.pop("about")))
            pictures = torch.from_numpy(file.pop("pictures"))
        except (ValueError, KeyError):
            return None
        numbers = {name.removeprefix(_NUMBER): values for name, values in file.items()}
        return cls(pictures, numbers) if known == about else None


@torch.no_grad()
def take_look(
    drawn: Iterable[tuple[Float[Tensor, "b 3 h w"], list[str]]],
    scorers: Mapping[str, Scorer],
    *,
    samples: int,
    start: AuditLook | None,
    device: torch.device | str = "cpu",
) -> AuditLook:
    """Measure pictures batch by batch; `path_kl` is added by whoever has the models.

    Args:
        drawn: Batches of pictures in [0, 1] with their prompts, the samples of a prompt one after the other.
        scorers: By the names of their numbers.
        samples: Pictures of each prompt.
        start: The look at the start, for distances; None if this is it.
        device: Where scorers are.

    Raises:
        FeedbackFailed: A scorer that does not give one finite number per picture.
    """
    rows: dict[str, list[Tensor]] = {}
    kept: list[Tensor] = []
    for images, prompts in drawn:
        # one tensor for all scorers: those that share a trunk then run it once
        some = images.to(device)
        found = {
            name: require_scores(scorer(some, prompts), some, name=name) for name, scorer in scorers.items()
        }
        found |= {"high_frequency": high_frequency_share(images), "saturation": mean_saturation(images)}
        for name, values in found.items():
            rows.setdefault(name, []).append(values.double().cpu())
        kept.append(images.clamp(0, 1).mul(255).round().byte())
    pictures = torch.cat(kept)
    numbers = {name: torch.cat(values).numpy() for name, values in rows.items()}
    if samples > 1:
        spread = [seed_diversity(some.flatten(1)[None])[0] for some in pictures.split(samples)]
        numbers["diversity"] = np.array(spread) / (255 * math.sqrt(pictures[0].numel()))
    numbers[DISTANCE] = np.zeros(len(pictures)) if start is None else _distances(pictures, start.pictures)
    return AuditLook(pictures, numbers)


def _distances(now: Sequence[Tensor] | Tensor, start: Sequence[Tensor] | Tensor) -> Float[np.ndarray, " n"]:
    """Root-mean-square pixel differences, of 1."""
    return np.array(
        [
            float((a.double() - b.double()).div(255).square().mean().sqrt())
            for a, b in zip(now, start, strict=True)
        ]
    )
