"""Pairs of pictures of which people preferred one.

Accepted rows (a `.jsonl` file of paths, or `.parquet` files of encoded pictures, in one folder):

- Pick-a-Pic: `caption`, `jpg_0`, `jpg_1`, `label_0`, `label_1` (labels in [0, 1], the larger one wins);
- `prompt`, `chosen`, `rejected`; an optional `axis` says what was compared ("color", "layout", ...).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unifl.data.encoded_sample import EncodedSample
from unifl.data.pictures import check_picture, fit_picture, read_picture, to_tensor
from unifl.data.text_files import json_rows, read_text
from unifl.errors import UserError


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt; `win` was preferred.

    Attributes:
        prompt: What both pictures show.
        win: The preferred picture, in [0, 1]; of a tie, the first.
        lose: The other one, in [0, 1].
        axis: What was compared ("color", "layout", ...), or None for everything at once.
        tie: Nobody won; `win` and `lose` are then only first and second.
        strength: How clear the preference is, in (0, 1]; 1 where that is not known, and for ties.
        win_mask: Where the preferred picture is meant, in [0, 1], or None for all of it.
        lose_mask: The same of the other one.
        user: Who judged, where that is known.
    """

    prompt: str
    win: Float[Tensor, "3 h w"]
    lose: Float[Tensor, "3 h w"]
    axis: str | None = None
    tie: bool = False
    strength: float = 1.0
    win_mask: Float[Tensor, "h w"] | None = None
    lose_mask: Float[Tensor, "h w"] | None = None
    user: str | None = None


@dataclass(frozen=True)
class EncodedPair:
    """A `Pair` whose pictures were encoded once; masks are those of the pictures, in pixels.

    Attributes:
        prompt: What both pictures show.
        win: Row of the cache of the preferred picture; of a tie, of the first.
        lose: Row of the other one.
        axis: See `Pair`.
        tie: See `Pair`.
        strength: See `Pair`.
        win_mask: See `Pair`.
        lose_mask: See `Pair`.
        user: See `Pair`.
    """

    prompt: str
    win: EncodedSample
    lose: EncodedSample
    axis: str | None = None
    tie: bool = False
    strength: float = 1.0
    win_mask: Float[Tensor, "h w"] | None = None
    lose_mask: Float[Tensor, "h w"] | None = None
    user: str | None = None


class PreferencePairs:
    """Pairs by row; `len()`, indexing, and `of_axis`.

    Args:
        rows: Rows of (prompt, win, lose, axis). Pictures are anything that `read` understands.
        read: Turns what a row holds into an image (3, h, w) in [0, 1]; tensors pass by default.
        ties: How many rows were left out because nobody won.

    Raises:
        UserError: No rows.
    """

    def __init__(
        self,
        rows: Sequence[tuple[str, Any, Any, str | None]],
        *,
        read: Callable[[Any], Tensor] | None = None,
        ties: int = 0,
    ) -> None:
        if not rows:
            raise UserError("there are no preference pairs; check that the data is not empty or all ties")
        self.rows = list(rows)
        self.ties = ties
        self._read = read

    @classmethod
    def from_tensors(
        cls,
        prompts: Sequence[str],
        win: Float[Tensor, "n 3 h w"],
        lose: Float[Tensor, "n 3 h w"],
        axes: Sequence[str | None] | None = None,
    ) -> PreferencePairs:
        """Pairs that are in memory already."""
        return cls(list(zip(prompts, win, lose, axes or [None] * len(prompts), strict=True)))

    @classmethod
    def from_folder(cls, folder: str | Path, *, resolution: int | None = None) -> PreferencePairs:
        """Read the formats at the top of this file; pictures are opened when a row is asked for.

        Args:
            folder: Holds `metadata.jsonl` or `*.parquet` (which needs pyarrow).
            resolution: Side in px of the centre square that pictures are scaled to.

        Raises:
            UserError: Nothing to read, or a row that has neither set of columns.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; check the path")
        metadata, tables = folder / "metadata.jsonl", sorted(folder.glob("*.parquet"))
        if metadata.exists():
            raw = [_located(row, folder) for row in json_rows(read_text(metadata), metadata)]
        elif tables:
            raw = [row for table in tables for row in _parquet_rows(table)]
        else:
            raise UserError(f"{folder} holds neither metadata.jsonl nor *.parquet; see the formats of pairs")
        rows = [_row(row, f"row {number} of {folder}") for number, row in enumerate(raw, start=1)]
        kept = [row for row in rows if row is not None]

        def read(source: Path | bytes) -> Tensor:
            name = None if isinstance(source, Path) else f"in {folder}"
            return to_tensor(fit_picture(read_picture(source, name=name), resolution))

        return cls(kept, read=read, ties=len(rows) - len(kept))

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        """One pair with its pictures."""
        prompt, win, lose, axis = self.rows[index]
        read = self._read or (lambda image: image)
        return Pair(prompt, read(win), read(lose), axis)

    @property
    def axes(self) -> list[str]:
        """Names of the axes that occur, sorted."""
        return sorted({row[3] for row in self.rows if row[3] is not None})

    def of_axis(self, axis: str) -> PreferencePairs:
        """The pairs that were compared on one axis.

        Raises:
            UserError: There are none.
        """
        rows = [row for row in self.rows if row[3] == axis]
        if not rows:
            raise UserError(f"no pairs for the axis {axis!r}; there are {', '.join(self.axes) or 'no axes'}")
        return PreferencePairs(rows, read=self._read)

    def subset(self, indices: Sequence[int]) -> PreferencePairs:
        """The rows of `indices`, in that order."""
        return PreferencePairs([self.rows[index] for index in indices], read=self._read)

    def validate(self) -> None:
        """Check the picture files of all rows without decoding them; pairs in memory pass.

        Raises:
            UserError: The first file that is missing or is not a picture.
        """
        for _, win, lose, _ in self.rows:
            for source in (win, lose):
                if isinstance(source, Path):
                    check_picture(source)


def _row(row: dict[str, Any], place: str) -> tuple[str, Any, Any, str | None] | None:
    """One row in our order, or None for a tie."""
    if {"prompt", "chosen", "rejected"} <= row.keys():
        return row["prompt"], row["chosen"], row["rejected"], row.get("axis")
    if {"caption", "jpg_0", "jpg_1", "label_0", "label_1"} <= row.keys():
        first, second = float(row["label_0"]), float(row["label_1"])
        if first == second:
            return None
        win, lose = ("jpg_0", "jpg_1") if first > second else ("jpg_1", "jpg_0")
        return row["caption"], row[win], row[lose], row.get("axis")
    raise UserError(
        f"{place} has the columns {sorted(row)}; needed are prompt, chosen, rejected "
        "or caption, jpg_0, jpg_1, label_0, label_1"
    )


def _located(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """File names as paths."""
    return {
        key: folder / value if key in ("chosen", "rejected", "jpg_0", "jpg_1") else value
        for key, value in row.items()
    }


def _parquet_rows(table: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{table} needs pyarrow to be read; run `pip install pyarrow`") from error
    columns = ("caption", "jpg_0", "jpg_1", "label_0", "label_1", "prompt", "chosen", "rejected", "axis")
    file = parquet.ParquetFile(table)
    rows = file.read([name for name in columns if name in file.schema_arrow.names]).to_pylist()
    # the Image feature of `datasets` stores {"bytes": ..., "path": ...}
    return [
        {key: value["bytes"] if isinstance(value, dict) else value for key, value in row.items()}
        for row in rows
    ]
