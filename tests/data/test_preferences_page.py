"""The Python on the page about preference data runs, on a tiny model and small pictures."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from preference_files import comparison, write_parquet
from unifl.testing import tiny_folder

PAGE = Path(__file__).parents[2] / "docs" / "preference-data.md"


def test_the_python_of_the_page_about_preference_data_runs(tmp_path, monkeypatch, capsys):
    pairs = [("cat", "a", "b"), ("cat", "a", "c"), ("dog", "d", "e"), ("dog", "e", "c")]
    rows = [comparison(prompt, win, lose, 0.9) for prompt, win, lose in pairs]
    write_parquet(tmp_path / "pickapic_v2" / "data" / "train-00000-of-00001.parquet", rows)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    code = "\n".join(blocks)
    for printed, used in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tiny_folder("sd15", tmp_path / "model"))),
        ("resolution=512", "resolution=32"),
    ):
        assert printed in code
        code = code.replace(printed, used)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.py").write_text(code)
    runpy.run_path("page.py", run_name="page")
    assert capsys.readouterr().out.splitlines() == [
        "2 cat (3, 32, 32) 0.800000011920929",
        "EncodedPair (4, 8, 8) 4",
        "1 [1] [0]",
    ]
