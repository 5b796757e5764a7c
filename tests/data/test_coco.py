from __future__ import annotations

import json
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from unifl.data import CocoImages, annotations_of, collate
from unifl.data.coco import stuff_labels
from unifl.errors import UserError

HEIGHT, WIDTH = 12, 16
# with gaps, and not in the order of ids
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}, {"id": 90, "name": "toothbrush"}]
SQUARE = [4.0, 2.0, 12.0, 2.0, 12.0, 10.0, 4.0, 10.0]  # x 4 to 12, y 2 to 10


def _write(folder, **changes):
    """Two pictures, one with two captions; a polygon, two run-length codes and a crowd."""
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "maps").mkdir(exist_ok=True)
    for number in (7, 9):
        values = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
        values[2:10, 4:12] = 255
        Image.fromarray(values).save(folder / "pictures" / f"{number:012d}.png")
        labels = np.full((HEIGHT, WIDTH), 123, np.uint8)  # id 124: stuff
        labels[2:10, 4:12] = 12  # id 13, a stop sign
        labels[0] = 255
        Image.fromarray(labels).save(folder / "maps" / f"{number:012d}.png")
    pictures = [
        {"id": number, "file_name": f"{number:012d}.png", "height": HEIGHT, "width": WIDTH}
        for number in (7, 9)
    ]
    captions = [
        {"id": 1, "image_id": 9, "caption": "A sign.\n"},
        {"id": 2, "image_id": 7, "caption": "two  people"},
        {"id": 3, "image_id": 9, "caption": "a red sign"},
    ]
    counts = [2 * HEIGHT, 3, HEIGHT * WIDTH - 2 * HEIGHT - 3]  # column by column: the top three of column 2
    annotations = [
        {"id": 11, "image_id": 9, "category_id": 13, "iscrowd": 0, "segmentation": [SQUARE]},
        {
            "id": 12,
            "image_id": 9,
            "category_id": 90,
            "iscrowd": 0,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
        },
        {
            "id": 13,
            "image_id": 9,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
        },
    ]
    content = {
        "captions": {"images": pictures, "annotations": captions},
        "instances": {"images": deepcopy(pictures), "annotations": annotations, "categories": CATEGORIES},
    }
    for name, change in changes.items():
        change(content[name])
    for name, part in content.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    return folder


def _open(folder, *, instances=True, stuff=True, **options):
    return CocoImages(
        folder / "pictures",
        folder / "captions.json",
        instances=folder / "instances.json" if instances else None,
        stuff=folder / "maps" if stuff else None,
        **options,
    )


def test_whole_pictures_and_captions_without_annotations(tmp_path):
    data = _open(_write(tmp_path), resolution=8)
    assert [data.caption(row) for row in range(3)] == [data[row].prompt for row in range(3)]
    assert data.picture_size(1) == (HEIGHT, WIDTH) and data.picture(1).size == (WIDTH, HEIGHT)
    assert data.picture(1).getpixel((0, 0)) == (7, 7, 7)


def test_one_sample_per_caption_with_its_annotations(tmp_path):
    data = _open(_write(tmp_path))
    data.validate()
    assert len(data) == 3 and data.categories == ["person", "stop sign", "toothbrush"]
    assert [data[i].prompt for i in range(3)] == ["A sign.", "two people", "a red sign"]
    sample = data[0]
    square = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    square[2:10, 4:12] = True
    assert torch.equal(sample.image[0] == 1, square)
    assert sample.labels.tolist() == [1, 2]  # not 13 and 90; the crowd is left out
    assert torch.equal(sample.masks[0], square)
    corner = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    corner[:3, 2] = True
    assert torch.equal(sample.masks[1], corner)
    assert len(data[1].masks) == 0 and data[1].labels.shape == (0,)
    assert set(sample.semantic.unique().tolist()) == {11, 112, 255}
    assert torch.equal(sample.semantic[1:] == 11, square[1:])
    assert annotations_of(data) == {"masks", "semantic"}
    batch = collate([data[0], data[1]])
    assert batch.semantic.shape == (2, HEIGHT, WIDTH) and [len(m) for m in batch.masks] == [2, 0]


def test_compressed_codes_are_read_alike(tmp_path):
    from pycocotools import mask as coder

    data = _open(_write(tmp_path))
    masks = np.asfortranarray(data[0].masks.numpy().astype(np.uint8).transpose(1, 2, 0))

    def compress(part):
        for annotation, code in zip(part["annotations"], coder.encode(masks), strict=False):
            annotation["segmentation"] = code | {"counts": code["counts"].decode()}

    again = _open(_write(tmp_path, instances=compress))
    again.validate()
    assert torch.equal(again[0].masks, data[0].masks)


def test_several_polygons_are_one_instance(tmp_path):
    def split(part):
        parts = [[4.0, 2.0, 8.0, 2.0, 8.0, 10.0, 4.0, 10.0], [8.0, 2.0, 12.0, 2.0, 12.0, 10.0, 8.0, 10.0]]
        part["annotations"][0]["segmentation"] = parts

    whole, halves = _open(_write(tmp_path))[0], _open(_write(tmp_path, instances=split))[0]
    assert torch.equal(whole.masks, halves.masks) and len(halves.labels) == 2


def test_a_resolution_cuts_the_centre_of_all_alike(tmp_path):
    data = _open(_write(tmp_path)).at(6)
    sample = data[0]
    assert sample.image.shape == (3, 6, 6) and sample.masks.shape == (1, 6, 6)  # three pixels vanish
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:5, 1:5] = True  # the square lies in the middle of 12 x 12, two columns are cut from each side
    assert torch.equal(sample.masks[0], inside) and torch.equal((sample.semantic == 11), inside)
    assert data[1].masks.shape == (0, 6, 6)
    assert data.at(None)[0].image.shape == (3, HEIGHT, WIDTH)


def test_instances_outside_what_is_cut_out_are_left_out(tmp_path):
    edge = [0.0, 0.0, 2.0, 0.0, 2.0, 12.0, 0.0, 12.0]  # the two columns that a centre square loses
    data = _open(_write(tmp_path, instances=_set(("annotations", 0), "segmentation", [edge])))
    assert data[0].labels.tolist() == [1, 2] and data[0].masks[0].sum() == 2 * HEIGHT
    cut = data.at(HEIGHT)[0]
    assert cut.labels.tolist() == [2] and cut.masks.shape == (1, HEIGHT, HEIGHT)


def test_labels_follow_the_names_that_are_given(tmp_path):
    names = ["background", "Toothbrush", "stop sign", "person", "sky"]
    data = _open(_write(tmp_path), categories=names)
    assert data[0].labels.tolist() == [2, 1] and data.categories == names
    with pytest.raises(
        UserError, match=r"category 'stop sign' of .*instances\.json is not among .*'stop-sign'"
    ):
        _open(tmp_path, categories=["person", "stop-sign", "toothbrush"])


def test_stuff_labels_leave_out_the_ids_that_coco_gave_up():
    labels = stuff_labels()
    assert sorted(set(labels.tolist())) == [-1, *range(171), 255]
    # (value + 1 is the id) person, the last thing, the first and the last stuff; ids 12 and 91 are gone
    assert labels[[0, 89, 91, 181, 11, 90]].tolist() == [0, 79, 80, 170, -1, -1]


def test_captions_and_maps_need_no_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    data = _open(_write(tmp_path), instances=False)
    assert annotations_of(data) == {"semantic"} and data[0].masks is None
    with pytest.raises(UserError, match=r"needs pycocotools; pip install pycocotools, or"):
        _open(tmp_path)


def _set(place, key, value):
    """A change of one entry of one list of a file."""
    name, number = place

    def change(part):
        part[name][number][key] = value

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"captions": _set(("annotations", 0), "image_id", 8)},
            r"caption 1 of .*captions\.json is for the picture 8, which the file does not list",
        ),
        (
            {"instances": _set(("annotations", 0), "image_id", 8)},
            r"annotation 11 of .*instances\.json has image_id 8, and the file lists no such picture",
        ),
        (
            {"instances": _set(("annotations", 1), "category_id", 12)},
            "annotation 12 of .* has category_id 12, and the file lists no such category",
        ),
        ({"captions": _set(("annotations", 0), "caption", None)}, r"annotation 1 of .* has no caption"),
        ({"captions": lambda part: part["annotations"].clear()}, "has no captions; give captions_"),
        ({"instances": lambda part: part.pop("categories")}, "has no list `categories`"),
        (
            {"instances": _set(("annotations", 0), "segmentation", [])},
            "annotation 11 has no segmentation; remove it",
        ),
        (
            {"instances": _set(("annotations", 0), "segmentation", [["a"]])},
            "polygons of annotation 11 are no numbers",
        ),
        *(
            (
                {"instances": _set(("annotations", 0), "segmentation", [polygon])},
                f"a polygon of annotation 11 has {len(polygon)} numbers",
            )
            for polygon in ([], [1.0, 1.0], [1.0, 1.0, 4.0, 4.0], SQUARE[:7])
        ),
        (
            {"instances": lambda part: (part["images"].pop(0), part["annotations"].clear())},
            r"instances\.json does not list 1 of the 2 pictures of .*captions\.json, such as picture 7",
        ),
        (
            {"instances": _set(("images", 1), "width", 20)},
            r"picture 9 has width 16 in .*captions\.json and 20 in .*instances\.json",
        ),
        (
            {"instances": _set(("images", 0), "file_name", "other.png")},
            r"picture 7 has file_name 0+7\.png in .* and other\.png in",
        ),
    ],
)
def test_files_that_do_not_hold_together(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        _open(_write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict.fromkeys(("captions", "instances"), _set(("images", 1), "width", 20)),
            r"0009\.png is 12 x 16 px, but the annotations say 12 x 20 \(height x width\)",
        ),
        (
            {"instances": _set(("annotations", 1), "segmentation", {"size": [6, 8], "counts": [48]})},
            r"the mask of annotation 12 has size \[6, 8\], but its picture 9 is 12 x 16 px",
        ),
        (
            dict.fromkeys(("captions", "instances"), _set(("images", 1), "file_name", "none.png")),
            r"cannot read the image .*none\.png",
        ),
    ],
)
def test_what_does_not_fit_the_pictures_is_found_before_and_while_reading(changes, message, tmp_path):
    data = _open(_write(tmp_path, **changes))
    for check in (data.validate, lambda: data[0]):
        with pytest.raises(UserError, match=message):
            check()


def test_codes_that_cannot_be_decoded(tmp_path):
    broken = _set(("annotations", 1), "segmentation", {"size": [HEIGHT, WIDTH], "counts": 3})
    with pytest.raises(UserError, match="the mask of annotation 12 cannot be decoded"):
        _open(_write(tmp_path, instances=broken))[0]


def test_maps_that_do_not_fit(tmp_path):
    data = _open(_write(tmp_path))
    file = tmp_path / "maps" / f"{9:012d}.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 11, np.uint8)).save(file)
    with pytest.raises(UserError, match="holds the value 11, which is no class of COCO-Stuff"):
        data[0]
    Image.fromarray(np.zeros((HEIGHT, 8), np.uint8)).save(file)
    for check in (data.validate, lambda: data[0]):
        with pytest.raises(UserError, match=r"12 x 8 px but its picture .* 12 x 16 px"):
            check()


def test_pictures_of_several_sizes_need_a_resolution(tmp_path):
    data = _open(_write(tmp_path))
    data.require_one_size()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{9:012d}.png")
    with pytest.raises(UserError, match="set `resolution`"):
        data.require_one_size()
    data.at(8).require_one_size()


def test_files_that_are_not_there(tmp_path):
    _write(tmp_path)
    with pytest.raises(UserError, match="there is no folder .*none of pictures"):
        CocoImages(tmp_path / "none", tmp_path / "captions.json")
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        CocoImages(tmp_path / "pictures", tmp_path / "none.json")
    with pytest.raises(UserError, match="there is no folder .*none of class maps"):
        CocoImages(tmp_path / "pictures", tmp_path / "captions.json", stuff=tmp_path / "none")
    (tmp_path / "captions.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        _open(tmp_path)
