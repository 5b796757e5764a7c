from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from unifl.data import AnnotatedImages, annotations_of, collate
from unifl.errors import UserError


def _write(folder, rows=2, *, size=(8, 8), mask_size=None, extra=None):
    """A folder of pictures whose left half is white and is instance 3 and class 1."""
    height, width = size
    lines = []
    for row in range(rows):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, : width // 2] = 255
        Image.fromarray(picture).save(folder / f"{row}.png")
        masks = np.zeros((1, *(mask_size or size)), np.uint8)
        masks[0, :, : masks.shape[2] // 2] = 1
        np.savez_compressed(folder / f"{row}.npz", masks=masks, labels=np.array([3]))
        Image.fromarray(masks[0]).save(folder / f"{row}_map.png")
        line = {"file_name": f"{row}.png", "text": f"picture {row}"}
        line |= {"instances": f"{row}.npz", "semantic": f"{row}_map.png"} if extra is None else extra
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_reads_pictures_masks_and_maps(tmp_path):
    data = AnnotatedImages(_write(tmp_path))
    data.validate()
    sample = data[1]
    assert len(data) == 2 and sample.prompt == "picture 1"
    assert sample.image.shape == (3, 8, 8) and float(sample.image.max()) == 1.0
    assert torch.equal(sample.masks[0], sample.image[0] == 1)
    assert sample.labels.tolist() == [3]
    assert torch.equal(sample.semantic, sample.masks[0].long())
    assert annotations_of(data) == {"masks", "semantic"}
    assert data.label_counts == data.at(4).label_counts == {"masks": 4}  # the highest label is 3


def test_instances_outside_what_is_cut_out_are_left_out(tmp_path):
    _write(tmp_path, rows=1, size=(8, 16))
    masks = np.zeros((2, 8, 16), np.uint8)
    masks[0, :, :4], masks[1, :, 6:10] = 1, 1  # the first lies in the quarter that a centre square loses
    np.savez_compressed(tmp_path / "0.npz", masks=masks, labels=np.array([3, 5]))
    data = AnnotatedImages(tmp_path)
    assert data[0].labels.tolist() == [3, 5]
    assert data.at(8)[0].labels.tolist() == [5] and data.at(8)[0].masks.shape == (1, 8, 8)


def test_resolution_cuts_the_centre_of_picture_and_masks_alike(tmp_path):
    data = AnnotatedImages(_write(tmp_path, size=(8, 16)), resolution=4)
    data.validate()
    sample = data[0]
    assert (
        sample.image.shape == (3, 4, 4)
        and sample.masks.shape == (1, 4, 4)
        and sample.semantic.shape == (4, 4)
    )
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:, :2] = True  # the white half of 16 columns ends in the middle of the centre square
    assert torch.equal(sample.masks[0], expected) and torch.equal(sample.semantic, expected.long())
    assert bool((sample.image[:, expected] > 0.8).all()) and bool((sample.image[:, ~expected] < 0.2).all())


def test_captions_alone_are_enough(tmp_path):
    data = AnnotatedImages(_write(tmp_path, extra={}))
    data.validate()
    assert annotations_of(data) == frozenset()
    assert collate([data[0], data[1]]).masks is None


def test_no_instances_in_a_picture(tmp_path):
    folder = _write(tmp_path, rows=1)
    np.savez(folder / "0.npz", masks=np.zeros((0, 8, 8), bool), labels=np.zeros(0, np.int32))
    for resolution in (None, 4):
        data = AnnotatedImages(folder, resolution=resolution)
        data.validate()
        assert len(data[0].masks) == 0 and data[0].labels.dtype == torch.int64


def test_a_mask_of_the_wrong_size_is_named_with_both_sizes(tmp_path):
    data = AnnotatedImages(_write(tmp_path, mask_size=(8, 4)))
    for check in (data.validate, lambda: data[0]):
        with pytest.raises(UserError, match=r"0\.npz is 8 x 4 px but its picture .*0\.png is 8 x 8 px"):
            check()


def test_a_map_of_the_wrong_size(tmp_path):
    folder = _write(tmp_path)
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(folder / "1_map.png")
    with pytest.raises(UserError, match=r"1_map\.png is 4 x 8 px"):
        AnnotatedImages(folder).validate()


def test_unreadable_pictures_are_named(tmp_path):
    folder = _write(tmp_path)
    whole = (folder / "1.png").read_bytes()
    for broken in (b"not a picture", whole[: len(whole) // 2]):
        (folder / "1.png").write_bytes(broken)
        data = AnnotatedImages(folder)
        for check in (data.validate, lambda data=data: data[1]):
            with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
                check()
    (folder / "1.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        AnnotatedImages(folder).validate()


def test_a_map_with_colours_is_refused(tmp_path):
    folder = _write(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0_map.png")
    with pytest.raises(UserError, match="has colour channels"):
        AnnotatedImages(folder)[0]


def test_labels_must_match_masks(tmp_path):
    folder = _write(tmp_path)
    np.savez(folder / "0.npz", masks=np.zeros((1, 8, 8), bool), labels=np.zeros(2, int))
    with pytest.raises(UserError, match="1 masks but `labels` of shape"):
        AnnotatedImages(folder).validate()
    np.savez(folder / "0.npz", masks=np.zeros((1, 8, 8), bool))
    with pytest.raises(UserError, match="cannot read `labels`"):
        AnnotatedImages(folder).validate()


def test_several_sizes_need_a_resolution(tmp_path):
    folder = _write(tmp_path, extra={})
    Image.new("RGB", (16, 8)).save(folder / "1.png")
    AnnotatedImages(folder).validate()
    with pytest.raises(UserError, match="set `resolution`"):
        AnnotatedImages(folder).require_one_size()
    AnnotatedImages(folder, resolution=8).require_one_size()


def test_a_jpeg_that_was_cut_off_is_found_before_training(tmp_path):
    folder = _write(tmp_path, extra={})
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "JPEG")
    (folder / "1.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        AnnotatedImages(folder).validate()


def test_folders_that_make_no_sense(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        AnnotatedImages(tmp_path / "none")
    with pytest.raises(UserError, match=r"no file .*metadata\.jsonl"):
        AnnotatedImages(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(UserError, match="lists no pictures"):
        AnnotatedImages(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    with pytest.raises(UserError, match="row 1 .* no text under `text`"):
        AnnotatedImages(tmp_path)
    rows = [{"file_name": "a.png", "text": "a", "semantic": "b.png"}, {"file_name": "a.png", "text": "a"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="1 of 2 rows .* have `semantic`"):
        AnnotatedImages(tmp_path)
