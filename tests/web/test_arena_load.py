"""Many annotators at once on the real server; benchmarks/arena_load.py runs the same for longer."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

LOAD = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "arena_load.py"), run_name="arena_load")


def test_fifty_annotators_lose_and_double_nothing_and_wait_for_nobody():
    seen, stored = LOAD["measure"](50, 15.0)
    assert len(seen.acknowledged) > 300 and not seen.refused
    assert sorted(stored) == sorted(seen.acknowledged)
    assert np.percentile(seen.votes, 95) < 0.2


def test_a_kill_in_the_middle_loses_no_acknowledged_vote():
    seen, stored = LOAD["measure"](50, 8.0, kill=True)
    assert len(seen.acknowledged) > 150 and set(seen.acknowledged) <= set(stored)
    assert len(stored) == len(set(stored)) <= len(seen.acknowledged) + 50  # at most one each was on its way
