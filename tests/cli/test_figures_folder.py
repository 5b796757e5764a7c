"""Where `unifl evaluate` writes when no folder is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from unifl.cli.figures import own_folder


@pytest.mark.parametrize("spelled", ["{}", "{}@4", "mine={}", "mine={}@4"])
def test_a_run_that_is_evaluated_alone_keeps_its_figures(tmp_path, spelled):
    (tmp_path / "config.yaml").write_text("")
    assert own_folder([spelled.format(tmp_path)]) == tmp_path


def test_several_models_and_models_that_are_not_runs_get_a_folder_of_their_own(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    elsewhere = Path("runs/evaluation")
    assert own_folder([str(tmp_path), "world:pipeline"]) == elsewhere
    assert own_folder(["world:pipeline@4"]) == elsewhere
