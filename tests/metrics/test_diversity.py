from __future__ import annotations

import numpy as np
import pytest
import torch

from unifl.errors import UserError
from unifl.metrics.diversity import relative_diversity, seed_diversity


def test_is_the_mean_distance_over_pairs_of_seeds():
    features = np.array([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]])  # distances 5, 0, 5
    assert seed_diversity(features) == pytest.approx([10 / 3])


def test_ignores_how_much_prompts_differ():
    one_picture_per_prompt = np.repeat(np.arange(12.0).reshape(4, 1, 3), 5, axis=1)
    assert seed_diversity(one_picture_per_prompt) == pytest.approx(np.zeros(4))


def test_takes_tensors_and_scales_with_the_features():
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(seed_diversity(2 * x), 2 * seed_diversity(x.double().numpy()), rtol=1e-6)


def test_one_sample_has_no_diversity():
    with pytest.raises(UserError, match="at least two samples per prompt, got 1"):
        seed_diversity(np.zeros((3, 1, 2)))


def test_relative_diversity_is_paired():
    reference = np.random.default_rng(0).uniform(0.1, 10, size=200)
    interval = relative_diversity(0.85 * reference, reference)
    assert interval.value == pytest.approx(0.85)
    assert interval.high - interval.low < 1e-9  # although both vary widely over prompts
