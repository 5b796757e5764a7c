from __future__ import annotations

import json

import pytest

from unifl.data import load_prompts
from unifl.errors import UserError


def test_reads_the_three_formats(tmp_path):
    (tmp_path / "a.txt").write_text("a red circle\n\n  two cats \n", encoding="utf-8")
    rows = [{"prompt": "a red circle", "tag": 1}, {"prompt": "two cats"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("Prompt\tCategory\na red circle\tx\ntwo cats\ty\n", encoding="utf-8")
    for name in ("a.txt", "a.jsonl", "a.tsv"):
        assert load_prompts(tmp_path / name) == ["a red circle", "two cats"]


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa cat".encode())
    assert load_prompts(tmp_path / "a.txt") == ["a cat"]


def test_only_line_ends_separate_prompts(tmp_path):
    # all but the last belong to prompts that are copied from web pages; `str.splitlines` would cut at each
    prompts = [f"a cat{character}on a mat" for character in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c")]
    (tmp_path / "a.txt").write_bytes("\r\n".join(prompts).encode())
    rows = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("\n".join(["Prompt", *prompts, ""]), encoding="utf-8")
    for name in ("a.txt", "a.jsonl", "a.tsv"):
        assert load_prompts(tmp_path / name) == prompts


def test_quotes_in_a_table_are_text(tmp_path):
    (tmp_path / "a.tsv").write_text('Prompt\n"hello" she said\n', encoding="utf-8")
    assert load_prompts(tmp_path / "a.tsv") == ['"hello" she said']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        (
            "a.txt",
            b"caf\xe9",
            r"not UTF-8 text \(byte 3\), but probably WINDOWS-1252; .*`iconv -f WINDOWS-1252 -t",
        ),
        ("a.txt", "caf\xe9".encode("utf-16"), "probably UTF-16; convert it"),
        ("a.txt", "caf\xe9".encode("utf-16-le"), "probably UTF-16LE; convert it"),
        ("a.txt", "cafe".encode("utf-16-le"), "probably UTF-16LE; convert it"),
        ("a.md", b"x", "use a .txt, .jsonl, .json, .csv, .tsv or .parquet file"),
        ("a.jsonl", b'{"prompt": "a"}\n\n{"text": "b"}', "line 3 of .* has no prompt; write one there"),
        ("a.jsonl", b'{"prompt": ', "line 1 .* is not JSON"),
        ("a.jsonl", b'["a"]', "line 1 .* is not an object"),
        ("a.tsv", b"text\na\n", "the columns of .* are text; call the one with the prompts `prompt`"),
        (
            "a.tsv",
            b"kind\tPrompt\nx\ta\ny\n",
            "line 3 of .* has 1 columns, and line 1 names 2; repair the row",
        ),
        ("a.txt", b"a cat\n" + b"x" * 5_000_000, "line 2 of .* has a prompt of 5,000,000 characters"),
        ("a.jsonl", b'{"prompt": "' + b"x" * 10_001 + b'"}', "line 1 of .* a prompt of 10,001 characters"),
    ],
)
def test_bad_files_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no file or folder .*none.txt"):
        load_prompts(tmp_path / "none.txt")


def test_suites_are_read_as_they_were_published(tmp_path):
    (tmp_path / "PartiPrompts.tsv").write_text("Prompt\tCategory\tChallenge\na cat\tAnimals\tBasic\n")
    (tmp_path / "anime.json").write_text('["a cat"]')
    (tmp_path / "geneval.jsonl").write_text(
        '{"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}\n'
    )
    (tmp_path / "drawbench.csv").write_text("Prompts,Category\na cat,Colors\n")
    (tmp_path / "dpg.csv").write_text("item_id,text\ncoco1,a cat\n")
    (tmp_path / "pick.csv").write_text("caption\na cat\na cat\n")
    for file in tmp_path.iterdir():
        assert load_prompts(file) == ["a cat"], file


def test_a_column_of_prompts_goes_before_others_that_a_suite_could_have(tmp_path):
    rows = '{"caption": "a photo", "prompt": "a cat"}\n{"caption": "a photo", "prompt": "a dog"}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "a.csv").write_text("item_id,text,prompt\n1,a photo,a cat\n1,a photo,a dog\n")
    for name in ("a.jsonl", "a.csv"):
        assert load_prompts(tmp_path / name) == ["a cat", "a dog"]
