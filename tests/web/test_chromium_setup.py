"""`chromium.sh`: what counts as a browser, and what CI may skip."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chromium.sh")


@pytest.mark.parametrize(
    ("chromium", "status", "says"),
    [
        ("echo Chromium 1", 0, ""),
        ("echo no libnss3.so >&2; exit 127", 4, "chromium is there and does not start"),
        (None, 3, "no Chromium could be installed; install one"),
    ],
)
def test_only_a_browser_that_starts_counts_and_a_broken_one_is_no_missing_one(
    tmp_path, chromium, status, says
):
    def program(name, script):
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (tmp_path / name).chmod(0o755)

    program("id", "echo 0")
    program("apt-get", "exit 100")  # no network
    program("python", "exit 1")
    if chromium is not None:
        program("chromium", chromium)
    bash = [str(shutil.which("bash")), str(SCRIPT), str(tmp_path / "python")]
    found = subprocess.run(bash, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (found.returncode, says in found.stderr) == (status, True), found.stderr
    assert found.stdout == (f"{tmp_path}/chromium\n" if status == 0 else "")
