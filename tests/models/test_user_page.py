"""docs/personal.md: its code runs, its parameters are counted."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from unifl.models import UserTraining, make_generator
from unifl.models.shapes import shaped_pipeline
from unifl.testing import tiny_pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "personal.md").read_text(encoding="utf-8")


def test_its_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("personal.py").write_text("\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)))
    found = runpy.run_path("personal.py", run_name="personal")
    assert "('ada', 'ben') (1, 3) tensor(True)" in capsys.readouterr().out
    assert found["image"].size == (32, 32)
    own = found["generator"].trainable_state()
    for name, tensor in found["again"].trainable_state().items():
        torch.testing.assert_close(tensor, own[name])
    start = make_generator(tiny_pipeline("sd15"), train=UserTraining(embedding_dim=3)).trainable_state()
    assert not any(torch.equal(start[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize(
    ("name", "total", "attention"),
    re.findall(r"^\| (.+?) \| ([\d.]+) million \| ([\d.]+) million \|$", PAGE, flags=re.M),
)
def test_its_parameters_are_counted(name, total, attention):
    family = {"Stable Diffusion 1.5": "sd15", "SDXL": "sdxl"}[name]
    pipeline = shaped_pipeline(family)
    own = make_generator(pipeline, train=UserTraining(embedding_dim=1024)).trainable_parameters()
    counts = {path: parameter.numel() for path, parameter in own.items()}
    layers = sum(count for path, count in counts.items() if "_ip.weight" in path)
    assert f"{sum(counts.values()) / 1e6:.1f}" == total and f"{layers / 1e6:.1f}" == attention
    e, k, d = 1024, 4, pipeline.unet.config.cross_attention_dim
    assert sum(counts.values()) - layers == e**2 + e + k * d * (e + 1) + 2 * d
