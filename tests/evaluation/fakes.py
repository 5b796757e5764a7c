"""Judges and models whose answers are known."""

from __future__ import annotations

import numpy as np
import torch

PROMPTS = [f"prompt {i}" for i in range(12)]
COUNTS = [1, 2, 3] * 4


class PixelJudge:
    """Reads every score off the red channel, and features off coarse pixels."""

    def __call__(self, images, prompts):
        assert len(images) == len(prompts)
        level = images[:, 0].mean(dim=(1, 2))
        scores = dict.fromkeys(
            ("alignment_fraction", "structure", "color", "layout", "lighting", "detail"), level
        )
        scores |= {"alignment": (level > 0.5).float(), "style": (level > 0.3).float(), "quality": level}
        return scores

    def features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


class Sampler:
    """Pictures of noise keyed by (seed, index) alone, brightened by ``gain``; keeps a record of its calls."""

    def __init__(self, gain=0.0):
        self.gain = gain
        self.calls = []

    def __call__(self, prompts, *, seed, indices):
        assert [PROMPTS[i] for i in indices] == prompts
        self.calls.append((seed, tuple(indices), torch.is_grad_enabled()))
        noise = np.stack([np.random.default_rng([seed, i]).uniform(size=(3, 8, 8)) for i in indices])
        shade = np.stack([np.random.default_rng([seed, i, 1]).uniform(0.2, 0.8) for i in indices])
        picture = 0.2 * noise + 0.8 * shade[:, None, None, None]
        return torch.from_numpy(picture + self.gain).clamp(0, 1).float()
