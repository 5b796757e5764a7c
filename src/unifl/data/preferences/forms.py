"""Which form preference data have, and their index."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from unifl.data.preferences.arrow_table import hub_table, parquet_table
from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.pair_forms import (
    RANKED_PICTURES,
    RANKS,
    chosen_rejected,
    pick_a_pic,
    rankings,
)
from unifl.data.preferences.places import HUB
from unifl.data.preferences.scored_forms import JudgedIndex, Pairing, likes, stored_pairs, stored_scores
from unifl.data.preferences.tables import JsonTable, Table
from unifl.errors import UserError

Form = Literal["auto", "pick_a_pic", "hpd", "chosen_rejected", "likes", "store"]

_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {  # one column of each group
    "pick_a_pic": (("caption",), ("jpg_0",), ("jpg_1",), ("label_0", "best_image_uid")),
    "hpd": (("prompt",), RANKED_PICTURES, (*RANKS, "human_preference")),
    "chosen_rejected": (("prompt",), ("chosen",), ("rejected",)),
    "store": (("prompt",), ("file_name",), ("scores",)),
    "likes": (("prompt",), ("image", "file_name"), ("label", "liked")),
}
_WANTED = frozenset(
    [name for groups in _NEEDED.values() for group in groups for name in group]
    + ["label_1", "has_label", "are_different", "image_0_uid", "image_1_uid", "ranking_id", "user_id", "user"]
    + ["axis", "tie", "strength", "chosen_mask", "rejected_mask"]
)
_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+")


def read_preferences(
    path: str | Path | Sequence[str | Path],
    *,
    form: Form = "auto",
    split: str | None = None,
    images: str | Path | None = None,
    score: str | None = None,
    pairing: Pairing = "all",
    min_gap: float = 0.0,
    unpaired: bool = False,
) -> PreferenceIndex | JudgedIndex:
    """Index preference data; no picture is read.

    Args:
        path: A folder, a `.jsonl`, `.json` or `.parquet` file, several parquet files, or `hub:` with the name of a data
            set of Hugging Face.
        form: What the columns are, see `unifl.data.preferences.pair_forms` and `scored_forms`; auto looks at them.
        split: Which part of the data.
        images: Folder that names of pictures start from; that of the data by default.
        score: For a store: which score.
        pairing: For a store: which samples of a prompt are paired.
        min_gap: For a store: smallest difference of scores of a pair.
        unpaired: For a store: its samples with their scores, in place of pairs.

    Raises:
        UserError: No data, columns of no form, several splits and none chosen, or a row that is wrong; with file and
            row.
    """
    table, shown = _open(path, split, None if images is None else Path(images).expanduser())
    form = _form(table, form, shown)
    if form != "store" and (score is not None or pairing != "all" or min_gap or unpaired):
        raise UserError(f"score, pairing, min_gap and unpaired are for a sample store, and {shown} is {form}")
    if form == "pick_a_pic":
        return pick_a_pic(table, shown)
    if form == "chosen_rejected":
        return chosen_rejected(table, shown)
    if form == "likes":
        return likes(table, shown)
    if not isinstance(table, JsonTable):
        raise UserError(f"{form} is read from .json or .jsonl, and {shown} is neither; convert it")
    if form == "hpd":
        return rankings(table, shown)
    if unpaired:
        return stored_scores(table, shown, score)
    return stored_pairs(table, shown, score, pairing=pairing, min_gap=min_gap)


def _form(table: Table, form: Form, shown: str) -> Form:
    """The form, checked, or the first whose columns are there."""
    names: list[Form] = ["pick_a_pic", "hpd", "chosen_rejected", "store", "likes"]
    for name in names:
        if form in ("auto", name) and all(set(group) & table.columns for group in _NEEDED[name]):
            return name
    wanted = names if form == "auto" else [form]
    forms = "; ".join(f"{name}: {', '.join(' or '.join(g) for g in _NEEDED[name])}" for name in wanted)
    raise UserError(f"{shown} has the columns {', '.join(sorted(table.columns))}; needed are {forms}")


def _open(
    path: str | Path | Sequence[str | Path], split: str | None, images: Path | None
) -> tuple[Table, str]:
    """The table, and what errors call it."""
    if isinstance(path, str | Path):
        if str(path).startswith(HUB):
            name = str(path)[len(HUB) :]
            return hub_table(name, split or "train", _WANTED), str(path)
        files = _files(Path(path).expanduser(), split)
        folder = Path(path).expanduser() if Path(path).expanduser().is_dir() else files[0].parent
        shown = str(path)
    else:
        files = [Path(file).expanduser() for file in path]
        if not files:
            raise UserError("no files of preference data are named; name one")
        folder, shown = files[0].parent, f"{files[0]} and {len(files) - 1} other file(s)"
    for file in files:
        if not file.is_file():
            raise UserError(f"there is no file or folder {file}; check the path")
    if all(file.suffix == ".parquet" for file in files):
        return parquet_table(files, _WANTED, images or folder), shown
    if len(files) > 1:
        raise UserError(f"{shown} holds several files; name one .json or .jsonl, or parquet files alone")
    if files[0].suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"cannot read preferences from {files[0]}; use .json, .jsonl or .parquet")
    return JsonTable(files[0], folder=images), shown


def _files(path: Path, split: str | None) -> list[Path]:
    """The files of a folder: metadata.jsonl, or parquet files, or one JSON file."""
    if not path.is_dir():
        if split is not None:
            raise UserError(
                f"{path} is one file, and split chooses among the files of a folder; leave it out"
            )
        return [path]
    if (path / "metadata.jsonl").exists() and split is None:
        return [path / "metadata.jsonl"]
    found = sorted(path.rglob("*.parquet")) or sorted([*path.glob("*.jsonl"), *path.glob("*.json")])
    if not found:
        raise UserError(f"{path} holds no metadata.jsonl, .parquet, .jsonl or .json; check the folder")
    by_split: dict[str, list[Path]] = {}
    for file in found:
        by_split.setdefault(_split_of(file, path), []).append(file)
    if split is None and len(by_split) > 1:
        raise UserError(f"{path} has the splits {', '.join(by_split)}; set `split` to one of them")
    if split is not None and split not in by_split:
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(by_split)}")
    return by_split[split] if split is not None else found


def _split_of(file: Path, folder: Path) -> str:
    """The split: train of train-00000-of-00010.parquet and of train/0.parquet; JSON files are one split each."""
    shard = _SHARD.fullmatch(file.stem)
    if shard is not None:
        return shard["split"]
    if file.suffix != ".parquet" or file.stem in ("train", "validation", "test"):
        return file.stem
    return file.parent.name if file.parent != folder else "all"
