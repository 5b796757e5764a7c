"""What would end a reward training after hours is found before it begins."""

from __future__ import annotations

import numpy as np

from unifl.assembly.reward_data import check_policy
from unifl.assembly.reward_split import Split
from unifl.assembly.reward_train_config import RewardTrainConfig
from unifl.data.preferences import PreferenceIndex
from unifl.feedback.reward_models import make_reward_model
from unifl.feedback.voting import fold_of


def check_training(config: RewardTrainConfig, index: PreferenceIndex, split: Split) -> None:
    """Look at the policy's samples, the folds and the weights that networks start from.

    Args:
        config: Of the training; towers on latents have their shape.
        index: All pairs.
        split: Of them.

    Raises:
        UserError: The first thing that is missing.
    """
    if config.policy is not None:
        check_policy(config.policy)
    if config.voting is not None and config.voting.folds:
        judged = split.fitted[~index.tie[split.fitted]]
        fold_of(index.prompts.codes[judged].astype(np.int64), config.voting.folds, seed=0)
    for shape in (config.network, config.voters):
        if shape is not None and shape.backbone != "small":
            make_reward_model(shape)
