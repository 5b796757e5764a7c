from __future__ import annotations

import io
import sys
import types

import pytest
import torch
from PIL import Image

from unifl.data import HubPictures
from unifl.errors import UserError


class Table:
    """Behaves like a map-style `datasets.Dataset`."""

    def __init__(self, rows):
        self.rows = list(rows)
        self.column_names = list(self.rows[0]) if self.rows else []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Image_:
    """Stands for `datasets.Image`."""

    def __init__(self, decode=True):
        self.decode = decode


Image_.__name__ = "Image"


class Decoding(Table):
    """A table with an Image feature: decodes as rows are read, unless cast."""

    decoded = 0

    def __init__(self, rows, feature=None):
        super().__init__(rows)
        self.features = {"image": feature or Image_()}

    def __getitem__(self, index):
        row = dict(self.rows[index])
        if "image" in row and self.features["image"].decode:
            Decoding.decoded += 1
            row["image"] = Image.open(io.BytesIO(row["image"]["bytes"]))
        return row

    def cast_column(self, column, feature):
        assert column == "image"
        return Decoding(self.rows, feature)

    def select_columns(self, names):
        return Table([{name: row[name] for name in names} for row in self.rows])


def pil(shade=0, size=(8, 8), mode="RGB"):
    return Image.new(mode, (size[1], size[0]), shade)


def encoded(shade=0, size=(8, 8)):
    content = io.BytesIO()
    pil(shade, size).save(content, "PNG")
    return content.getvalue()


def test_pictures_of_all_kinds_and_captions_of_both(tmp_path):
    (tmp_path / "d.png").write_bytes(encoded(255))
    table = Table(
        [
            {"image": pil(255, mode="L"), "text": " a "},
            {"image": encoded(255), "text": ["b", "another"]},
            {"image": {"bytes": encoded(255), "path": None}, "text": ("c",)},
            {"image": {"bytes": None, "path": str(tmp_path / "d.png")}, "text": "d"},
        ]
    )
    data = HubPictures(table)
    data.validate()
    assert [sample.prompt for sample in data] == ["a", "b", "c", "d"]
    for index in range(4):
        assert data.picture_size(index) == (8, 8) and data.caption(index) == "abcd"[index]
        assert data[index].image.shape == (3, 8, 8) and float(data[index].image[0].min()) == 1.0
    assert data.at(4)[1].image.shape == (3, 4, 4)


def test_columns_by_name(tmp_path):
    data = HubPictures(
        Table([{"jpg": encoded(), "caption": "a"}]), image_column="jpg", caption_column="caption"
    )
    assert data[0].prompt == "a"
    for arguments, message in (
        ({"image_column": "jpg"}, r"no column 'text'; .*Its columns are jpg, caption: set caption_column"),
        ({"caption_column": "capton"}, r"no column 'image'; .*set image_column"),
        (
            {"image_column": "jpg", "caption_column": "capton"},
            r"no column 'capton'; did you mean 'caption'\?",
        ),
    ):
        with pytest.raises(UserError, match=message):
            HubPictures(Table([{"jpg": encoded(), "caption": "a"}]), **arguments)


def test_an_image_feature_is_not_decoded_for_sizes_and_captions():
    Decoding.decoded = 0
    data = HubPictures(
        Decoding([{"image": {"bytes": encoded(n), "path": None}, "text": str(n)} for n in (3, 5)])
    )
    assert data.picture_size(1) == (8, 8) and data.caption(1) == "5"
    assert torch.equal(data[1].image[0], torch.full((8, 8), 5 / 255))
    assert Decoding.decoded == 0


def test_what_cannot_be_read_is_named_by_its_row():
    whole = encoded(7, (64, 64))
    rows = [{"image": broken, "text": "a"} for broken in (b"none", whole[: len(whole) // 2], 5)]
    for index, row in enumerate(rows):
        data = HubPictures(Table([{"image": whole, "text": "a"}] * index + [row]))
        for check in (data.validate, lambda data=data, index=index: data[index]):
            with pytest.raises(UserError, match=rf"cannot read the image row {index} of the data set: "):
                check()
    cut = HubPictures(Table([{"image": Image.open(io.BytesIO(whole[: len(whole) // 2])), "text": "a"}]))
    with pytest.raises(UserError, match="cannot read the image row 0"):
        _ = cut[0]


def test_a_caption_that_is_not_text_is_named_by_its_row():
    for caption, found in ((None, "NoneType"), (5, "int"), ([], "an empty list"), ([5], "int")):
        data = HubPictures(Table([{"image": encoded(), "text": "a"}, {"image": encoded(), "text": caption}]))
        for check in (data.validate, lambda data=data: data[1]):
            with pytest.raises(
                UserError, match=rf"the caption of row 1 .* is not text: 'text' holds {found};"
            ):
                check()


def test_tables_that_make_no_sense():
    with pytest.raises(UserError, match="has no rows"):
        HubPictures(Table([]))
    with pytest.raises(UserError, match="has the splits train, test; give one"):
        HubPictures({"train": 1, "test": 2})
    with pytest.raises(UserError, match="streams, and rows are read by number"):
        HubPictures(iter([]))
    data = HubPictures(Table([{"image": pil(size=size), "text": "a"} for size in ((8, 8), (8, 16))]))
    with pytest.raises(UserError, match=r"row 0 .* \(8, 8\) px and row 1 .* \(8, 16\) px; set `resolution`"):
        data.require_one_size()


def test_a_name_needs_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"someone/pictures needs `datasets` to be read; run `pip install datasets`"
    ):
        HubPictures("someone/pictures")


def test_names_and_saved_folders_are_loaded_by_the_library(monkeypatch, tmp_path):
    table = Table([{"image": encoded(), "text": "a"}])
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if split != "train":
            raise ValueError(f"Unknown split {split}")
        return table

    library = types.SimpleNamespace(
        load_dataset=load_dataset, load_from_disk=lambda name: {"train": table, "test": None}
    )
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert len(HubPictures("someone/pictures")) == 1 and asked == [("someone/pictures", "train")]
    with pytest.raises(UserError, match="cannot load the split 'tset' of the data set a: Unknown split tset"):
        HubPictures("a", split="tset")
    (tmp_path / "dataset_dict.json").touch()
    asked.clear()
    assert HubPictures(tmp_path)[0].prompt == "a" and not asked
