"""The gold judge gives final figures and nothing else; this wrapper refuses every other use while the program runs.

It complements an import contract (nothing that trains may import the package that holds the gold judge) and
the rule that the gold judge is handed in from outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unifl.evaluation.judge import Judge
from unifl.guard import GoldGuardError, is_training_active


class GoldJudge:
    """A judge that raises ``GoldGuardError`` when gradients are on or a training loop is active.

    With gradients on it could serve as a reward; while a loop runs it could choose checkpoints, guidance or
    an early stop. For both there is the validation judge.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores by key, each ``(b,)``."""
        _refuse_fitting()
        return self._judge(images, prompts)

    def features(self, images: Tensor) -> Tensor:
        """Features ``(b, d)``."""
        _refuse_fitting()
        return self._judge.features(images)


def _refuse_fitting() -> None:
    if torch.is_grad_enabled():
        raise GoldGuardError(
            "the gold judge was called with gradients on; call it inside torch.no_grad(), "
            "and use a reward model where a gradient is needed"
        )
    if is_training_active():
        raise GoldGuardError(
            "the gold judge was called while a training loop is active; use the validation judge during training, "
            "and the gold judge after the loop has ended"
        )
