"""Rendered scenes as annotated pictures: the real data of perceptual and adversarial feedback."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unifl.data import Sample
from unifl.world.renderer import render
from unifl.world.scenes import Scene, parse, place, sample_scenes

_CHUNK = 250


class SceneImages:
    """Scenes drawn once and kept in memory; indexing gives a `Sample` with masks and a semantic map."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.scenes = scenes
        parts = [render(scenes[i : i + _CHUNK]) for i in range(0, len(scenes), _CHUNK)]
        self.images = torch.cat([p.images for p in parts])
        self._masks = torch.cat([p.masks for p in parts])
        self._labels = torch.cat([p.labels for p in parts])
        self._semantic = torch.cat([p.semantic for p in parts])

    @classmethod
    def sample(
        cls, number: int, *, seed: int, min_quality: float = 0.0, held_out: bool = False
    ) -> SceneImages:
        """Random scenes of one side of the split; `min_quality` above 0 makes a curated set."""
        return cls(sample_scenes(number, seed=seed, held_out=held_out, min_quality=min_quality))

    @classmethod
    def of_prompts(cls, prompts: Sequence[str], *, seed: int) -> SceneImages:
        """A scene for each caption, with qualities and places drawn at random."""
        rng = np.random.default_rng(seed)
        return cls([place(parse(prompt), rng) for prompt in prompts])

    @property
    def prompts(self) -> list[str]:
        """Captions of all scenes."""
        return [scene.caption for scene in self.scenes]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        there = self._masks[index].flatten(1).any(1)
        return Sample(
            image=self.images[index],
            prompt=self.scenes[index].caption,
            masks=self._masks[index][there],
            labels=self._labels[index][there],
            semantic=self._semantic[index],
        )
