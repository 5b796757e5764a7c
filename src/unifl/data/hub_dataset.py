"""Pictures with captions from `datasets` of Hugging Face (https://huggingface.co/docs/datasets)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from unifl.data.batch import Sample
from unifl.data.pictures import (
    check_picture,
    fit_picture,
    picture_size,
    read_picture,
    require_equal_sizes,
    to_tensor,
)
from unifl.errors import UserError, nearest


class HubPictures:
    """Rows of a map-style data set, by number.

    Args:
        dataset: A `datasets.Dataset` (or anything with `column_names`, a length, and rows that are dictionaries),
            the name of one on the hub, or a folder (of `save_to_disk`, or one that `load_dataset` understands).
        split: Which part of a named data set.
        image_column: Column of pictures: PIL images, encoded bytes, or what the Image feature stores.
        caption_column: Column of captions: texts, or lists of texts, of which the first counts.
        resolution: Side in px of the centre square that every picture is scaled to; None leaves sizes alone.

    Raises:
        UserError: `datasets` is missing, the name cannot be loaded, it has several splits, it streams, it has no
            rows, or a column is not there.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "text",
        resolution: int | None = None,
    ) -> None:
        self.shown = str(dataset) if isinstance(dataset, str | Path) else "the data set"
        self.image_column = image_column
        self.caption_column = caption_column
        self.resolution = resolution
        rows = load_rows(str(dataset), split) if isinstance(dataset, str | Path) else dataset
        _check(rows, self.shown, {"image_column": image_column, "caption_column": caption_column})
        self._rows = undecoded(rows, image_column)
        # without the pictures, so that a caption costs no decoding
        selected = getattr(rows, "select_columns", None)
        self._captions = rows if selected is None else selected([caption_column])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """One picture with its caption.

        Raises:
            UserError: The picture cannot be read, or the caption is not text; with the row.
        """
        row = self._row(index)
        picture = _decoded(row[self.image_column], self.name(index))
        return Sample(to_tensor(fit_picture(picture, self.resolution)), self._caption_of(row, index))

    def picture(self, index: int) -> Image.Image:
        """One picture in its own size.

        Raises:
            UserError: It cannot be read.
        """
        return _decoded(self._row(index)[self.image_column], self.name(index))

    def picture_size(self, index: int) -> tuple[int, int]:
        """Its own (height, width).

        Raises:
            UserError: It cannot be read.
        """
        source = picture_source(self._row(index)[self.image_column], self.name(index))
        if isinstance(source, Image.Image):
            return source.height, source.width
        return picture_size(source, name=self.name(index))

    def caption(self, index: int) -> str:
        """The caption of one picture.

        Raises:
            UserError: It is not text.
        """
        return self._caption_of(self._captions[index], index)

    def name(self, index: int) -> str:
        """What errors call a row."""
        return f"row {index} of {self.shown}"

    def at(self, resolution: int | None) -> HubPictures:
        """The same rows at another resolution."""
        other = object.__new__(HubPictures)
        other.__dict__.update(self.__dict__, resolution=resolution)
        return other

    def validate(self) -> None:
        """Check that all pictures are whole and all captions are text.

        Raises:
            UserError: The first problem, with the row.
        """
        for index in range(len(self)):
            source = picture_source(self._row(index)[self.image_column], self.name(index))
            if not isinstance(source, Image.Image):
                check_picture(source, name=self.name(index))
            self.caption(index)

    def require_one_size(self) -> None:
        """Check that pictures can be stacked.

        Raises:
            UserError: Two pictures of different sizes and no resolution that both are scaled to.
        """
        if self.resolution is not None:
            return
        require_equal_sizes(len(self), self.picture_size, self.name)

    def _row(self, index: int) -> Any:
        try:
            return self._rows[index]
        except IndexError:
            raise  # the end of an iteration
        except Exception as error:  # a decoder's own error: PIL's, or that of an audio or video library
            raise UserError(
                f"cannot read the image {self.name(index)}: {error}; replace or remove it"
            ) from error

    def _caption_of(self, row: Any, index: int) -> str:
        caption = row[self.caption_column]
        if isinstance(caption, list | tuple) and caption:
            caption = caption[0]
        if not isinstance(caption, str):
            found = "an empty list" if caption in ([], ()) else type(caption).__name__
            raise UserError(
                f"the caption of {self.name(index)} is not text: {self.caption_column!r} holds {found}; filter such "
                "rows out, or set caption_column"
            )
        return caption.strip()


def _decoded(value: Any, name: str) -> Image.Image:
    """A picture from what a row holds, as RGB.

    Raises:
        UserError: It cannot be read.
    """
    source = picture_source(value, name)
    if isinstance(source, Image.Image):
        try:
            return source.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # PIL decodes here
            raise UserError(f"cannot read the image {name}: {error}; replace or remove it") from error
    return read_picture(source, name=name)


def picture_source(value: Any, name: str) -> Image.Image | bytes | Path:
    """A PIL image, the bytes of one, or its file; the Image feature stores {"bytes": ..., "path": ...}.

    Args:
        value: What a row holds.
        name: What an error calls it.

    Raises:
        UserError: Anything else.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image | bytes):
        return value
    if isinstance(value, str):
        return Path(value)
    raise UserError(
        f"cannot read the image {name}: it is of type {type(value).__name__}; name a column of pictures or of "
        "their bytes"
    )


def load_rows(name: str, split: str) -> Any:
    """A data set by its name on the hub, or by its folder.

    Raises:
        UserError: `datasets` is missing, or there is no such data set or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"the data set {name} needs `datasets` to be read; run `pip install datasets`"
        ) from error
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name)
            return loaded[split] if hasattr(loaded, "keys") else loaded
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # theirs are many, and they say what is wrong
        raise UserError(f"cannot load the split {split!r} of the data set {name}: {error}") from error


def _check(rows: Any, shown: str, wanted: dict[str, str]) -> None:
    if hasattr(rows, "keys"):
        raise UserError(f"{shown} has the splits {', '.join(rows.keys())}; give one of them")
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise UserError(f"{shown} streams, and rows are read by number; load it without streaming=True")
    if len(rows) == 0:
        raise UserError(f"{shown} has no rows; check its split and filters")
    columns = list(rows.column_names)
    for argument, column in wanted.items():
        if column not in columns:
            guess = nearest(column, columns)
            hint = f"did you mean {guess!r}? " if guess else ""
            raise UserError(
                f"{shown} has no column {column!r}; {hint}Its columns are {', '.join(columns)}: set {argument}"
            )


def undecoded(rows: Any, column: str) -> Any:
    """The same rows with pictures as bytes, so that a size costs a header and errors are ours."""
    feature: Any = (getattr(rows, "features", None) or {}).get(column)
    if type(feature).__name__ != "Image" or not hasattr(rows, "cast_column"):
        return rows
    return rows.cast_column(column, type(feature)(decode=False))
