"""`unifl prompts select` on the packaged text encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from unifl.data import load_prompts

WORLD = [
    f"a {size} {colour} {shape}, {style} style, white background"
    for size in ("small", "large")
    for colour in ("red", "blue", "green")
    for shape in ("circle", "square", "triangle")
    for style in ("flat", "outline")
]


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [*WORLD, "circle", WORLD[0], f" {WORLD[1]}"]
    (tmp_path / "all.txt").write_text("\n".join(lines), encoding="utf-8")
    return lines


def test_selects_with_the_packaged_encoder(unifl, prompts, tmp_path):
    result = unifl("prompts", "select", "all.txt", "few.txt", "--encoder", "world:pipeline", "-n", 5)
    assert result.exit_code == 0, result.output
    written = load_prompts("few.txt")
    report = json.loads((tmp_path / "few.report.json").read_text())
    assert report["counts"]["read"] == 39 and report["counts"]["duplicated"] == 2
    assert report["counts"]["after_filter"] == 36
    assert report["counts"]["selected"] == len(written) <= 5
    assert set(written) <= set(WORLD)
    assert report["settings"]["threshold_rule"] == "at_least"
    assert report["mode"] == "exact" and report["peak_memory_bytes"] > 0
    assert set(report["ans"]) == {"read", "random", "selected"}
    assert (tmp_path / "few.report.png").read_bytes().startswith(b"\x89PNG")
    assert "duplicated, dropped" in result.output and "ANS" in result.output
    assert "few.report.json" in result.output
    # the embeddings are kept: another filter reads them
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "few.embeddings").iterdir()}
    assert len(shards) == 1
    again = unifl(
        "prompts", "select", "all.txt", "few.txt", "--encoder", "world:pipeline", "--rule", "more_than"
    )
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


def test_embeddings_and_a_parser_of_ones_own(unifl, prompts, tmp_path):
    np.save("rows.npy", np.random.default_rng(0).standard_normal((len(prompts), 64)))
    (tmp_path / "own_parser.py").write_text(
        "def parse(prompt):\n    return [('x', ['red'])] if 'red' in prompt else []\n"
        "def wrong(prompt):\n    return prompt\n"
        "def letters(prompt):\n    return [('x', 'red')]\n"
    )
    result = unifl(
        *("prompts", "select", "all.txt", "out/red.jsonl", "--encoder", "rows.npy", "--report", "out/r.json"),
        *("--parser", "own_parser:parse", "-n", 100),
    )
    assert result.exit_code == 0, result.output
    assert load_prompts("out/red.jsonl") == [prompt for prompt in WORLD if "red" in prompt]
    assert (tmp_path / "out" / "r.png").exists()
    assert "only 12 are left of the 100 asked for" in result.output
    for name in ("wrong", "letters"):  # the letters of one string are no relations
        parser = f"own_parser:{name}"
        result = unifl("prompts", "select", "all.txt", "a.txt", "--encoder", "rows.npy", "--parser", parser)
        assert result.exit_code == 2
        assert f"{parser} returned" in result.stderr and "list of (name, relations)" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_at_once(unifl, prompts):
    result = unifl(
        *("prompts", "select", "all.txt", "few.txt"),
        *("--encoder", "world:pipeline", "--device", "cuda"),
    )
    assert result.exit_code == 2 and "torch sees no GPU here; use cpu or auto" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OUT": "few.csv"}, "cannot write prompts to few.csv; use a .txt or .jsonl file"),
        ({"OUT": "all.txt"}, "all.txt is also what is read"),
        ({"OUT": "folder.txt"}, "folder.txt is a folder"),
        ({"OUT": "all.txt/few.txt"}, "cannot write all.txt/few.txt: "),
        ({"IN": "none.txt"}, "there is no file or folder none.txt"),
        ({"--report": "report.html"}, "let its name end in .json"),
        ({"--encoder": "rows.npy"}, "there is no file rows.npy"),
        ({"--encoder": "world:pipelin"}, "did you mean 'pipeline'"),
        ({"--parser": "rule"}, "did you mean 'rules'"),
        ({"--parser": "no_such_module:parse"}, "cannot import 'no_such_module'"),
        ({"--batch-size": 0}, "batch_size is 0"),
        ({"--similarity": 2}, "similarity is 2"),
        ({"--min-relations": 50}, "the relation filter removed all 37 prompts"),
    ],
)
def test_mistakes_are_one_line_before_long_work(unifl, prompts, tmp_path, monkeypatch, changes, message):
    (tmp_path / "folder.txt").mkdir()
    monkeypatch.setattr(
        "unifl.assembly.prompts.embed_in_shards",
        lambda *_, **__: pytest.fail("embedded before the error"),
    )
    options = {"--encoder": "world:pipeline"} | changes
    source, output = options.pop("IN", "all.txt"), options.pop("OUT", "few.txt")
    result = unifl("prompts", "select", source, output, *(part for pair in options.items() for part in pair))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "few.txt").exists()


def test_a_prompt_with_a_line_break_needs_jsonl(unifl, prompts):
    with open("lines.jsonl", "w") as file:
        file.write(json.dumps({"prompt": "a red\ncircle"}) + "\n" + json.dumps({"prompt": "a blue square"}))
    encoder = ("--encoder", "world:pipeline")
    result = unifl("prompts", "select", "lines.jsonl", "few.txt", *encoder)
    assert result.exit_code == 2
    assert "prompt 1 of lines.jsonl has a line break" in result.stderr and "write few.jsonl" in result.stderr
    result = unifl("prompts", "select", "lines.jsonl", "few.jsonl", *encoder, "--similarity", 1)
    assert result.exit_code == 0, result.output
    assert "a red\ncircle" in load_prompts("few.jsonl")


def test_half_a_character_is_found_before_long_work(unifl, prompts):
    with open("half.jsonl", "w") as file:
        file.write('{"prompt": "a red circle"}\n{"prompt": "a \\ud83d cat"}\n')
    result = unifl("prompts", "select", "half.jsonl", "few.jsonl", "--encoder", "world:pipeline")
    assert result.exit_code == 2
    assert "line 2 of half.jsonl is no text in UTF-8, as it has half of a character" in result.stderr


def test_ctrl_c_says_how_to_go_on(unifl, prompts, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("unifl.assembly.prompts.embed_in_shards", stop)
    result = unifl("prompts", "select", "all.txt", "few.txt", "--encoder", "world:pipeline")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
