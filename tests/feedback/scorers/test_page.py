"""The page about scorers: its code runs, and it has a row for each of them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from unifl.feedback.scorers import SCORERS

PAGE = Path(__file__).parents[3] / "docs" / "scorers.md"


def test_the_code_on_the_page_runs(tmp_path, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    runpy.run_path(str(tmp_path / "page.py"))
    assert "torch.Size([2])" in capsys.readouterr().out


def test_every_scorer_has_a_row_and_a_card_that_says_something():
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert set(SCORERS) <= named
    for name, card in SCORERS.items():
        assert card.title and card.scale and card.sees and card.biases, name
        assert bool(card.licence) == bool(card.weights), name
