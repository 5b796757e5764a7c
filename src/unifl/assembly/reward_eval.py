"""How well a reward agrees with people: its scores on the pictures that they compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from unifl.data.preferences import PreferenceIndex, PreferenceSet
from unifl.data.preferences.shown_pictures import once_per_prompt
from unifl.errors import UserError
from unifl.feedback import Feedback
from unifl.feedback.black_box import require_scores
from unifl.feedback.reward_models import TrainedReward
from unifl.metrics.preference_accuracy import PreferenceAccuracy, preference_accuracy


def evaluate_reward(
    reward: Feedback,
    pairs: PreferenceSet,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> PreferenceAccuracy:
    """Score both pictures of every pair, each once per prompt, and compare with what people preferred.

    Args:
        reward: On pixels.
        pairs: Ties may be among them.
        batch_size: Pictures at once; without a resolution of the pairs, one at a time.
        device: Where pictures are shown to the reward.
        progress: Called with (pictures done, pictures in all).

    Raises:
        UserError: A reward on latents, a picture that cannot be read, or no pair with a preference.
        FeedbackFailed: The reward gives something else than a finite number per picture.
    """
    if reward.space != "pixel":
        raise UserError(
            f"{reward.name} reads {reward.space}s, and these are pictures; choose a reward on pixels"
        )
    index = pairs.index
    prompts, pictures, places = once_per_prompt(index, np.concatenate([index.win, index.lose]))
    scores = np.empty(len(pictures))
    at_once = batch_size if pairs.resolution is not None else 1
    for start in range(0, len(pictures), at_once):
        rows = slice(start, start + at_once)
        scores[rows] = _scored(reward, pairs, prompts[rows], pictures[rows], device)
        if progress is not None:
            progress(min(start + at_once, len(pictures)), len(pictures))
    win, lose = np.split(scores[places], 2)
    label = np.where(index.tie, 0.5, 1.0)
    return preference_accuracy(win - lose, label, index.prompts.codes)


def warn_if_learnt(reward: Feedback, index: PreferenceIndex) -> None:
    """Warn that a reward model is measured on the data that it was trained on."""
    data = reward.found.get("data") if isinstance(reward, TrainedReward) else None
    if data is not None and Path(data).expanduser().resolve() == Path(index.shown).expanduser().resolve():
        warnings.warn(
            f"{reward.name} was trained on {data}, so that its accuracy there flatters; the evaluation.json beside it "
            "has that on prompts by which nothing was chosen",
            stacklevel=2,
        )


def _scored(
    reward: Feedback,
    pairs: PreferenceSet,
    prompts: np.ndarray,
    pictures: np.ndarray,
    device: torch.device | str,
) -> Float[np.ndarray, " k"]:
    images = torch.stack([pairs.image(number) for number in pictures.tolist()]).to(device)
    texts = [pairs.index.prompts.values[code] if code >= 0 else "" for code in prompts.tolist()]
    with torch.no_grad():
        answer = reward(images, texts)
    return require_scores(answer, images, name=reward.name).double().cpu().numpy()
