"""The Python of the pages about evaluation and metrics runs as printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def run(page, folder):
    blocks = re.findall(
        r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), flags=re.M | re.S
    )
    (folder / "page.py").write_text("\n".join(blocks))
    runpy.run_path(str(folder / "page.py"))


def test_the_page_about_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("evaluation.md", tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "hpsv2 ['a cat', 'a dog', 'a tower'] ['anime', 'photo', 'photo']"
    assert printed[1:3] == ["True", "False circle should be above square, and is left of it"]
    assert printed[3:] == ["dpg ['Is there a cat?', 'Is the cat red?']"]


def test_the_page_about_metrics(tmp_path, capsys):
    run("metrics.md", tmp_path)
    assert "Interval(value=" in capsys.readouterr().out
