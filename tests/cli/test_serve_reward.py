"""`unifl serve-reward`: what is refused before a scorer is loaded."""

from __future__ import annotations

import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sharpness", "--host", "0.0.0.0"],
            "0.0.0.0 can be reached from other machines, and there is no token",
        ),
        (["sharpness", "--token-file", "none"], "cannot read the token in none"),
        (["nothing", "--port", "0"], "no reward 'nothing'"),
        (["sharpness", "--port", "0", "--weights", "x"], "sharpness has no weights"),
        (["hpsv3", "--port", "0"], "give the file as `question`"),
        (["hpsv3", "--port", "0", "--question", "none.txt"], "the question in none.txt cannot be read"),
    ],
)
def test_wrong_use_is_one_line(unifl, arguments, message):
    result = unifl("serve-reward", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


def test_a_judge_of_its_own_process_is_there_before_it_is_served(unifl, tmp_path):
    """Its instruction is found, its weights are not."""
    (tmp_path / "question.txt").write_text("{prompt}: <|Reward|>")
    options = ("--question", str(tmp_path / "question.txt"), "--weights", str(tmp_path / "none.safetensors"))
    result = unifl("serve-reward", "hpsv3", "--port", "0", "--device", "cpu", *options)
    assert result.exit_code == 2 and "there are no weights at" in " ".join(result.output.split()), (
        result.output
    )


def test_without_the_web_extra_it_says_what_to_install(unifl, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("unifl.web.rewards")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = unifl("serve-reward", "sharpness")
    assert result.exit_code == 2 and "pip install 'unifl[web]'" in " ".join(result.output.split())
