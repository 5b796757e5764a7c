"""A suite from its files: which format they are in is seen from what they hold, or said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from unifl.data.suites import lists, tables
from unifl.data.suites.dpg import dpg_table
from unifl.data.suites.entry import Entry, Suite, require_size, suite
from unifl.data.suites.geneval import drawn_folders, drawn_prompts, geneval
from unifl.errors import UserError, nearest

_METADATA = "evaluation_metadata.jsonl"


def load_suite(path: str | Path, form: str = "auto") -> Suite:
    """Read a suite.

    Args:
        path: A file or a folder, as it was published.
        form: One of `FORMS`, or "auto" to look at names and contents.

    Returns:
        Its prompts, with their groups.

    Raises:
        UserError: No such file or format, a row that is not one of the format (with its number), a prompt of more
            than `MAX_PROMPT` characters, or no prompt at all.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; check the path")
    if path.suffix.lower() != ".parquet":  # whose columns of pictures are not read
        require_size(path)
    if form == "auto":
        form = _seen(path)
    if form not in _READERS:
        guess = nearest(form, _READERS)
        hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(_READERS)}"
        raise UserError(f"there is no suite format {form!r}; {hint}")
    if path.suffix.lower() == ".parquet" and form not in _OF_TABLES:
        raise UserError(f"{path} is a table, and {form} is none; name the file as it was published")
    if path.is_dir() and form not in _OF_FOLDERS:
        raise UserError(f"{path} is a folder, and {form} is a file; name the file")
    return suite(form, _READERS[form](path), path)


def _seen(path: Path) -> str:
    """The format of a file or folder."""
    if path.is_dir():
        return _seen_in_folder(path)
    kind = path.suffix.lower()
    if kind == ".json":
        return "hpsv2"
    if kind == ".txt":
        return "t2i_compbench" if lists.is_compbench(path) else "plain"
    if kind in _TABLES:
        names = tables.columns(path)
        for form, needed in _COLUMNS.items():
            if needed <= names.keys() and (form != "geneval" or kind == ".jsonl"):
                return form
        known = "; ".join(f"{form}: {', '.join(sorted(needed))}" for form, needed in _COLUMNS.items())
        raise UserError(
            f"the columns of {path} are {', '.join(names.values()) or 'none'}; call the one with the prompts `prompt`, "
            f"or give all columns of a suite ({known})"
        )
    raise UserError(
        f"cannot read prompts from {path}; use a .txt, .jsonl, .json, .csv, .tsv or .parquet file"
    )


def _seen_in_folder(path: Path) -> str:
    if (path / _METADATA).is_file() or drawn_folders(path):
        return "geneval"
    if any(path.glob("*.json")):
        return "hpsv2"
    texts = list(path.glob("*.txt"))
    if texts:
        return "t2i_compbench" if any(map(lists.is_compbench, texts)) else "dpg"
    raise UserError(f"{path} holds no .txt and no .json files of prompts; name the file of the suite itself")


def _geneval(path: Path) -> list[Entry]:
    if path.is_dir() and not (path / _METADATA).is_file():
        return drawn_prompts(path)
    return geneval(path / _METADATA if path.is_dir() else path)


def _dpg(path: Path) -> list[Entry]:
    return lists.dpg_folder(path) if path.is_dir() else dpg_table(path)


def _plain(path: Path) -> list[Entry]:
    return tables.plain_column(path) if path.suffix.lower() in _TABLES else lists.plain_lines(path)


_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_COLUMNS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "geneval": frozenset({"tag", "include", "prompt"}),
        "partiprompts": frozenset({"prompt", "category", "challenge"}),
        "drawbench": frozenset({"prompts", "category"}),
        "plain": frozenset({"prompt"}),  # the two below have none, and what has one means it
        "dpg": frozenset({"item_id", "text"}),
        "pick_a_pic": frozenset({"caption"}),
    }
)
_READERS: Mapping[str, Callable[[Path], list[Entry]]] = MappingProxyType(
    {
        "hpsv2": lists.hpsv2,
        "partiprompts": lambda path: tables.with_category(path, "prompt"),
        "pick_a_pic": tables.pick_a_pic,
        "geneval": _geneval,
        "t2i_compbench": lists.compbench,
        "dpg": _dpg,
        "drawbench": lambda path: tables.with_category(path, "prompts"),
        "plain": _plain,
    }
)
_OF_TABLES = frozenset({"partiprompts", "pick_a_pic", "dpg", "drawbench", "plain"})
_OF_FOLDERS = frozenset({"hpsv2", "geneval", "t2i_compbench", "dpg"})
FORMS = tuple(_READERS)
"""Formats by name."""
