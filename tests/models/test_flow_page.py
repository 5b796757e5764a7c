"""The Python on docs/flow-models.md runs, and its figures are right."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import diffusers
import pytest

from unifl.models.schedule import FlowSchedule

PAGE = Path(__file__).parents[2] / "docs" / "flow-models.md"


def test_its_code_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.py").write_text("\n".join(blocks))
    runpy.run_path("flow.py", run_name="flow")
    first, last = capsys.readouterr().out.strip().splitlines()
    assert first == "flow transformer (16, 8, 8) 3.0" and last == "['pytorch_lora_weights.safetensors']"


def test_its_figures():
    schedule = FlowSchedule(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert float(schedule.times(28, "trailing")[-2]) == pytest.approx(0.009, abs=5e-4)
    assert 4 * (77 + 256) * 4096 / 1e6 == pytest.approx(5.5, abs=0.05)  # bytes of one prompt in float32
    assert 256 * 2**20 // (4 * ((77 + 256) * 4096 + 2048)) == pytest.approx(45, abs=5)
