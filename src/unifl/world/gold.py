"""The gold judge: final figures and nothing else.

Only the command line imports this module (a contract in CI holds that); what it returns refuses to work while
gradients are on or a training loop is active.
"""

from __future__ import annotations

from unifl.evaluation.guard import GoldJudge
from unifl.world.assets import ASSETS
from unifl.world.judges import load_judge_file


def load_gold() -> GoldJudge:
    """The guarded gold judge."""
    return GoldJudge(load_judge_file("gold", ASSETS / "judges" / "gold.safetensors"))
