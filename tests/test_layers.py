"""The architecture, checked: layers by import-linter, sizes by counting."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unifl"
LINE_LIMIT = 400


def _lint(source: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of pyproject.toml on the package below `source`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    command += ["--no-cache", "--no-logo", "--config", str(ROOT / "pyproject.toml")]
    environment = os.environ | {"PYTHONPATH": str(source)}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)


def test_the_layers_hold():
    result = _lint(PACKAGE.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.fixture(scope="module")
def copied_source(tmp_path_factory):
    """The code without the packaged weights, to be spoilt."""
    source = tmp_path_factory.mktemp("src")
    shutil.copytree(PACKAGE, source / "unifl", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    return source


@pytest.mark.parametrize(
    ("importer", "statement", "contract"),
    [
        ("process/__init__.py", "import unifl.models", "Each layer imports only from those below it"),
        ("evaluation/__init__.py", "import unifl.world.gold", "Only the command line imports the gold judge"),
        ("world/scenes.py", "import unifl.world.gold", "Only the command line imports the gold judge"),
        (
            "training/__init__.py",
            "import unifl.world.scenes",
            "Only the layers above it import the embedded world",
        ),
        ("testing.py", "import unifl.world.scenes", "Tiny pipelines for tests stand on the library"),
    ],
)
def test_a_wrong_import_breaks_its_contract(copied_source, importer, statement, contract):
    path = copied_source / "unifl" / importer
    original = path.read_text()
    path.write_text(f"{original}\n{statement}\n")
    try:
        result = _lint(copied_source)
    finally:
        path.write_text(original)
    assert result.returncode == 1, result.stdout + result.stderr
    assert any(line.startswith(contract) and " BROKEN" in line for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINE_LIMIT, (
        f"{path} has over {LINE_LIMIT} lines"
    )


def test_the_command_line_imports_quickly_and_the_package_without_torch():
    code = "import sys, unifl; print([name for name in ('torch', 'diffusers', 'pydantic') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
