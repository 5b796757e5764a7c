"""Settings of a run."""

from __future__ import annotations

import pytest

from unifl import config as configs
from unifl.errors import UserError
from unifl.training.config import TrainingConfig


def test_yaml_and_overrides():
    text = "learning_rate: 1e-5\noptimizers:\n  student: {kind: muon, kwargs: {momentum: 0.8}}\n"
    config = configs.load(text, TrainingConfig, ["optimizers.student.max_grad_norm=2", "seed=7"])
    student, other = config.optimizer("student"), config.optimizer("discriminator")
    assert (student.kind, student.learning_rate, student.max_grad_norm) == ("muon", 1e-5, 2.0)
    assert student.kwargs == {"momentum": 0.8} and config.seed == 7
    assert (other.kind, other.learning_rate, other.max_grad_norm) == ("adamw", 1e-5, 1.0)
    assert configs.load(configs.dump(config), TrainingConfig) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("max_train_steps=0", "max_train_steps is 0; it must be at least 1"),
        ("learning_rate=-1", "learning_rate is -1.0; it must be above 0"),
        ("ema_decay=1", "ema_decay is 1.0; it must be between 0 and 1"),
        ("checkpoints_total_limit=0", "checkpoints_total_limit is 0"),
        ("preview_steps=-1", "preview_steps is -1"),
        ("max_grad_norm=0", "max_grad_norm is 0.0"),
        (
            "optimizers.student.max_grad_norm=-1",
            "max_grad_norm of an optimizer is -1.0; it must be above 0, or null to take the run's",
        ),
        ("optimizers.student.learning_rate=0", "learning_rate of an optimizer is 0.0; it must be above 0"),
        ("max_trian_steps=5", "max_train_steps"),
        ("lr_scheduler=cosin", "lr_scheduler"),
    ],
)
def test_values_that_make_no_sense(change, message):
    with pytest.raises(UserError, match=message):
        configs.load({}, TrainingConfig, [change])
