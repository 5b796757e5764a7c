"""The documentation says what is true: its code runs, its pages and tests exist."""

from __future__ import annotations

import io
import re
import runpy
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from unifl import config as configs
from unifl.testing import tiny_folder

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _python_blocks(page: Path) -> str:
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    )


def test_the_code_on_the_page_about_extending_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extending.py").write_text(_python_blocks(DOCS / "extending.md"))
    runpy.run_path("extending.py", run_name="extending")
    printed = capsys.readouterr().out
    assert "ReFL needs a gradient through the feedback 'counted', which has none" in printed
    assert re.search(r"^2 -?0\.\d+$", printed, flags=re.M)
    assert (tmp_path / "runs" / "warm" / "metrics.jsonl").exists()


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On a tiny model and for one step, otherwise as printed."""
    code = _python_blocks(ROOT / "README.md")
    for printed, used in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tiny_folder("sd15", tmp_path / "model"))),
        ("max_train_steps=100", "max_train_steps=1"),
    ):
        assert printed in code
        code = code.replace(printed, used)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme.py").write_text(code)
    runpy.run_path("readme.py", run_name="readme")
    assert "reward/warmth" in capsys.readouterr().out
    assert (tmp_path / "runs" / "warm" / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_the_python_of_the_page_about_prompts_runs(tmp_path, monkeypatch, capsys):
    code = _python_blocks(DOCS / "prompt-selection.md")
    assert "path/to/clip" in code
    code = code.replace("path/to/clip", str(tiny_folder("sd15", tmp_path / "model")))
    (tmp_path / "selection.py").write_text(code)
    runpy.run_path(str(tmp_path / "selection.py"))
    assert "Counts(read=4, duplicated=0, after_filter=3" in capsys.readouterr().out


def test_the_python_of_the_page_about_data_runs(tmp_path, monkeypatch, capsys):
    """On a tiny model and small pictures, otherwise as printed."""
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "shards" / f"{shard:05d}.tar", "w") as archive:
            for name, content in (("a.png", _picture(64, 64)), ("a.txt", f"number {shard}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    code = _python_blocks(DOCS / "data.md")
    for printed, used in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tiny_folder("sd15", tmp_path / "model"))),
        ("resolution=512", "resolution=32"),
    ):
        assert printed in code
        code = code.replace(printed, used)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.py").write_text(code)
    runpy.run_path("data.py", run_name="data")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "3 number 0" and printed[1].startswith("2 1 [")
    assert printed[2] == "(2, 4, 8, 8) ['number 0', 'number 1']"


def test_the_python_of_the_page_about_distillation_runs(tmp_path, monkeypatch, capsys):
    """On a tiny model, small pictures and for one step, otherwise as printed."""
    code = _python_blocks(DOCS / "distillation.md")
    for printed, used in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tiny_folder("sd15", tmp_path / "model"))),
        ("resolution=512", "resolution=32"),
        ("max_train_steps=1000", "max_train_steps=1"),
    ):
        assert printed in code
        code = code.replace(printed, used)
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(_picture(32, 32))
    rows = [f'{{"file_name": "{number}.png", "text": "a cat"}}\n' for number in range(2)]
    (tmp_path / "pictures" / "metadata.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "distillation.py").write_text(code)
    found = runpy.run_path("distillation.py", run_name="distillation")
    assert re.search(r"distillation.*reward/warmth", capsys.readouterr().out)
    assert found["image"].size == (32, 32)


def test_the_python_of_the_page_about_preferences_runs(tmp_path, monkeypatch, capsys):
    """On a tiny model, small pictures and for two steps, otherwise as printed."""
    code = _python_blocks(DOCS / "preference.md")
    for printed, used in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tiny_folder("sd15", tmp_path / "model"))),
        ("resolution=512", "resolution=32"),
        ("max_train_steps=1000", "max_train_steps=2"),
    ):
        assert printed in code
        code = code.replace(printed, used)
    (tmp_path / "pairs").mkdir()
    for number in range(3):
        (tmp_path / "pairs" / f"{number}.png").write_bytes(_picture(40, 40))
    rows = [f'{{"prompt": "a cat", "chosen": "0.png", "rejected": "{number}.png"}}\n' for number in (1, 2)]
    (tmp_path / "pairs" / "metadata.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preferences.py").write_text(code)
    runpy.run_path("preferences.py", run_name="preferences")
    printed = capsys.readouterr().out
    assert "'unet encoder forward': 4" in printed
    assert re.search(
        r"^step 1: winners lead in 0\.50, their error has risen by 0\.00000$", printed, flags=re.M
    )
    assert (tmp_path / "runs" / "ncp_dpo" / "lora" / "pytorch_lora_weights.safetensors").exists()


def _picture(height, width):
    content = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(content, "PNG")
    return content.getvalue()


def test_the_code_on_the_page_about_proxies_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxies.py").write_text(_python_blocks(DOCS / "latent-proxy.md"))
    runpy.run_path("proxies.py")
    accuracy, *scores = capsys.readouterr().out.splitlines()
    assert 0 <= float(accuracy) <= 1 and len(scores) == 2 and scores[1].startswith("tensor([-")
    assert (tmp_path / "proxy" / "proxy.safetensors").exists()


def test_the_code_and_the_settings_on_the_page_about_reward_models_work(tmp_path, monkeypatch, capsys):
    from unifl.assembly.reward_train_config import RewardTrainConfig

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(_python_blocks(DOCS / "reward-models.md"))
    runpy.run_path(str(tmp_path / "models.py"))
    assert "torch.Size([2])" in capsys.readouterr().out
    page = (DOCS / "reward-models.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.M | re.S)
    settings = configs.load(block, RewardTrainConfig)
    assert settings.voting is not None and settings.voting.folds == 2


def test_every_page_is_in_the_navigation_and_exists():
    listed = set(re.findall(r"(\S+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), flags=re.M))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize(
    "reference", sorted(set(re.findall(r"`(tests/\S+::\w+)`", (DOCS / "conformance.md").read_text())))
)
def test_conformance_names_tests_that_exist(reference):
    file, name = reference.split("::")
    assert f"def {name}(" in (ROOT / file).read_text()
