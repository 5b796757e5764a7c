"""Suites that are lists: HPSv2, T2I-CompBench, the folder of DPG-Bench, and plain files of prompts."""

from __future__ import annotations

import json
import re
from pathlib import Path

from unifl.data.suites.dpg import dpg_group
from unifl.data.suites.entry import Entry, checked, require_size
from unifl.data.text_files import read_text
from unifl.errors import UserError

COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
_COMPBENCH_FILE = re.compile(rf"({'|'.join(COMPBENCH)})_(val|train)\w*\.txt")


def hpsv2(path: Path) -> list[Entry]:
    """`<style>.json`, each a list of prompts; one of them, a folder of them, or one file with lists by style.

    DrawBench lies beside the styles as it was published, and HPSv2's mean is over the styles alone: of a folder it is
    left out.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.glob("*.json") if file.stem != "drawbench")
    if not files:
        raise UserError(f"{path} has no .json files of styles; the benchmark of HPSv2 has one for each")
    return [entry for file in files for entry in _styles(file)]


def compbench(path: Path) -> list[Entry]:
    """`<category>_val.txt`, a prompt per line; one of them, or the folder with those of all categories."""
    if path.is_dir():
        files = [path / f"{name}_val.txt" for name in COMPBENCH if (path / f"{name}_val.txt").is_file()]
    else:
        files = [path]
    if not files:
        raise UserError(f"{path} has no file such as color_val.txt; T2I-CompBench has one per category")
    return [entry for file in files for entry in _lines(file, _category(file))]


def is_compbench(path: Path) -> bool:
    """Whether a file has a name of T2I-CompBench."""
    return _COMPBENCH_FILE.fullmatch(path.name) is not None


def dpg_folder(path: Path) -> list[Entry]:
    """A folder with a `.txt` per prompt."""
    files = sorted(path.glob("*.txt"), key=_natural) if path.is_dir() else []
    if not files:
        raise UserError(f"{path} is no folder of .txt files; DPG-Bench has one per prompt, or a table")
    found = []
    for file in files:
        require_size(file)
        text = " ".join(read_text(file).split())
        found.append(Entry(checked(text, str(file)), dpg_group(file.stem)))
    return found


def plain_lines(path: Path) -> list[Entry]:
    """A prompt per line."""
    return _lines(path, None)


def _lines(path: Path, group: str | None) -> list[Entry]:
    require_size(path)
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [Entry(checked(line, f"line {number} of {path}"), group) for number, line in lines if line.strip()]


def _category(path: Path) -> str:
    match = _COMPBENCH_FILE.fullmatch(path.name)
    return match[1] if match else path.stem


def _styles(path: Path) -> list[Entry]:
    require_size(path)
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"line {error.lineno} of {path} is not JSON: {error.msg}") from None
    styles = found if isinstance(found, dict) else {path.stem: found}
    entries = []
    for style, prompts in styles.items():
        if not isinstance(prompts, list):
            raise UserError(
                f"{path} holds no list of prompts for {style!r}; HPSv2 has one list of texts per style"
            )
        where = f"of {path}" if style == path.stem else f"of {style!r} in {path}"
        entries += [
            Entry(checked(prompt, f"entry {number} {where}"), style)
            for number, prompt in enumerate(prompts, 1)
        ]
    return entries


def _natural(path: Path) -> tuple[str, int, str]:
    """2.txt comes before 10.txt."""
    match = re.fullmatch(r"(\D*)(\d{1,18})(.*)", path.stem)
    return (match[1], int(match[2]), match[3]) if match else (path.stem, -1, "")
