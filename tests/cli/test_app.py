from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from unifl.cli import app, checks

COMMANDS = (
    "train",
    "plan",
    "generate",
    "evaluate",
    "compare",
    "report",
    "demo",
    "doctor",
    "push",
    "bench",
    "proxy",
)


def test_the_command_line_answers_without_heavy_imports():
    code = (
        "import sys, unifl.cli;"
        "print([n for n in ('torch', 'diffusers', 'transformers', 'numpy', 'pydantic') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        *((name,) for name in COMMANDS),
        *(("world", name) for name in ("build", "show", "preferences")),
        ("prompts", "select"),
    ],
)
def test_every_help_text_has_an_example(unifl, command):
    result = unifl(*command, "--help")
    assert result.exit_code == 0
    assert "For example:" in result.output
    assert f"unifl {' '.join(command)}" in result.output


def test_help_and_version(unifl):
    assert all(command in unifl("--help").output for command in COMMANDS)
    import unifl as package

    assert unifl("--version").output.strip() == package.__version__


def test_a_mistyped_command_is_answered_with_the_nearest(unifl):
    result = unifl("trian")
    assert result.exit_code == 2
    assert "Did you mean 'train'" in result.output


def test_ctrl_c_anywhere_ends_with_130(unifl, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("unifl.evaluation.write_report", stop)
    result = unifl("report", ".")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


@pytest.mark.parametrize(
    ("number", "code", "advice"),
    [
        (errno.ENOSPC, 1, "error: picture.png: No space left on device; make room, and run the same"),
        (errno.EACCES, 2, "error: picture.png: Permission denied; name another place, or change its rights"),
        (errno.EEXIST, 2, "error: picture.png: File exists; name another place"),
        (errno.ENOTDIR, 2, "error: picture.png: Not a directory; name another place"),
    ],
)
def test_what_the_disk_refuses_is_one_line(unifl, monkeypatch, number, code, advice):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "picture.png")

    monkeypatch.setattr("unifl.world.show.show_scenes", refuse)
    result = unifl("world", "show")
    assert result.exit_code == code
    assert advice in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_need_not_name_a_file(unifl, monkeypatch):
    def refuse(*_, **__):  # as Pillow does
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("unifl.world.show.show_scenes", refuse)
    assert "error: No space left on device; make room" in unifl("world", "show").stderr


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("not about the disk")

    monkeypatch.setattr("unifl.world.show.show_scenes", refuse)
    assert isinstance(CliRunner().invoke(app, ["world", "show"]).exception, ConnectionError)


def test_pictures_do_not_go_into_a_file(unifl, tmp_path):
    place = tmp_path / "taken"
    place.write_text("")
    result = unifl("world", "show", place / "world.png")
    assert result.exit_code == 2
    assert "taken" in result.stderr and "name another place" in result.stderr


def test_libraries_are_quiet_before_they_are_imported(tmp_path):
    (tmp_path / "taken").write_text("")
    asked = (sys.executable, "-m", "unifl.cli", "world", "preferences", "taken/pairs", "--prompts", "1")
    result = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: taken"), result.stderr
    assert result.stderr.count("\n") == 1


def test_doctor_lists_versions_and_passes(unifl, tmp_path):
    result = unifl("doctor", "--folder", tmp_path)
    assert result.exit_code == 0, result.output
    for what in ("torch", "diffusers", "device", "threads", "torchvision", "hub", "disk", "embedded world"):
        assert what in result.output
    assert "HF_HUB_OFFLINE is set" in result.output


def test_doctor_finds_a_torchvision_that_does_not_fit(unifl, tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n", encoding="utf-8"
    )
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    check = checks.torchvision()
    assert check.state == "fix"
    assert "nms does not exist" in check.found
    assert "pip uninstall torchvision" in check.advice


def test_doctor_finds_libraries_that_are_missing_or_old(monkeypatch):
    found = {"torch": "2.13.0+cpu", "diffusers": "0.41.9", "transformers": None, "peft": "0.21.2"}
    monkeypatch.setattr(checks, "_version", lambda name: found.get(name, "9.9"))
    state = {check.what: check for check in checks.versions()}
    assert state["torch"].state == state["peft"].state == "ok"
    assert state["diffusers"].state == "fix"
    assert "pip install 'diffusers>=0.42'" in state["diffusers"].advice
    assert state["transformers"].found == "missing"


def test_doctor_says_when_the_disk_is_nearly_full(tmp_path, monkeypatch):
    assert checks.room(str(tmp_path / "not" / "yet")).state in ("ok", "note")
    monkeypatch.setattr(checks, "_ROOM", 10**18)
    assert checks.room(str(tmp_path)).state == "note"


def test_world_show_draws_scenes(unifl, tmp_path):
    result = unifl("world", "show", tmp_path / "scenes.png", "-n", "2", "--held-out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "scenes.png").stat().st_size > 1000
