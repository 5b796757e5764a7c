"""A suite from its files: which format they are in is seen from what they hold, or said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from unifl.data.suites import lists, tables
from unifl.data.suites.dpg import dpg_table
from unifl.data.suites.entry import Entry, Suite, require_size, suite
from unifl.data.suites.geneval import geneval
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
    if kind in (".csv", ".tsv", ".jsonl", ".parquet"):
        names = tables.header(path)
        for form, needed in _COLUMNS.items():
            if needed <= set(names):
                return form
        if any(name.lower() == "prompt" for name in names):
            return "plain"
        known = "; ".join(f"{form}: {', '.join(sorted(needed))}" for form, needed in _COLUMNS.items())
        raise UserError(
            f"the columns of {path} are {', '.join(names) or 'none'}, which are those of no suite ({known}); rename "
            "them, or say what it is by --suite"
        )
    raise UserError(
        f"cannot read prompts from {path}; use a .txt, .jsonl, .json, .csv, .tsv or .parquet file"
    )


def _seen_in_folder(path: Path) -> str:
    if (path / _METADATA).is_file():
        return "geneval"
    if any(path.glob("*.json")):
        return "hpsv2"
    texts = list(path.glob("*.txt"))
    if texts:
        return "t2i_compbench" if any(map(lists.is_compbench, texts)) else "dpg"
    raise UserError(f"{path} holds no .txt and no .json files of prompts; name the file of the suite itself")


def _geneval(path: Path) -> list[Entry]:
    return geneval(path / _METADATA if path.is_dir() else path)


def _dpg(path: Path) -> list[Entry]:
    return lists.dpg_folder(path) if path.is_dir() else dpg_table(path)


def _plain(path: Path) -> list[Entry]:
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return lists.plain_objects(path)
    if kind in (".csv", ".tsv"):
        column = next((name for name in tables.header(path) if name.lower() == "prompt"), "Prompt")
        return tables.plain_column(path, column)
    return lists.plain_lines(path)


_COLUMNS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "geneval": frozenset({"tag", "include", "prompt"}),
        "partiprompts": frozenset({"Prompt", "Category", "Challenge"}),
        "drawbench": frozenset({"Prompts", "Category"}),
        "dpg": frozenset({"item_id", "text"}),
        "pick_a_pic": frozenset({"caption"}),
    }
)
_READERS: Mapping[str, Callable[[Path], list[Entry]]] = MappingProxyType(
    {
        "hpsv2": lists.hpsv2,
        "partiprompts": lambda path: tables.with_category(path, "Prompt", "Category"),
        "pick_a_pic": tables.pick_a_pic,
        "geneval": _geneval,
        "t2i_compbench": lists.compbench,
        "dpg": _dpg,
        "drawbench": lambda path: tables.with_category(path, "Prompts", "Category"),
        "plain": _plain,
    }
)
_OF_FOLDERS = frozenset({"hpsv2", "geneval", "t2i_compbench", "dpg"})
FORMS = tuple(_READERS)
"""Formats by name."""
