from __future__ import annotations

import json

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from unifl.data import AnnotatedImages, BucketedPictures, BucketOrder, collate
from unifl.data.buckets import bucket_sizes, fit_to_bucket, nearest_bucket
from unifl.errors import UserError
from unifl.randomness import Key

# (height, width) of SDXL's appendix I up to the square; the taller ones mirror these, but for 704 x 1344
WIDE = (
    "512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408 704x1344 "
    "768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024 1024x1024"
)


def gradient(height, width):
    """Red grows from left to right, green from top to bottom, one per pixel."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return Image.fromarray(pixels)


def write(folder, sizes):
    lines = []
    for row, (height, width) in enumerate(sizes):
        gradient(height, width).save(folder / f"{row}.png")
        lines.append(json.dumps({"file_name": f"{row}.png", "text": f"picture {row}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return AnnotatedImages(folder)


def test_sizes_are_those_of_sdxl():
    listed = [tuple(map(int, size.split("x"))) for size in WIDE.split()]
    assert bucket_sizes(1024) == listed + [(width, height) for height, width in reversed(listed[:-1])]


@pytest.mark.parametrize(("resolution", "multiple", "limit"), [(512, 64, 4.0), (64, 8, 2.0), (768, 32, 1.5)])
def test_sizes_keep_area_multiple_and_limit(resolution, multiple, limit):
    sizes = bucket_sizes(resolution, multiple=multiple, max_aspect=limit)
    assert (resolution, resolution) in sizes and len(sizes) > 1 and len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0 and (width, height) in sizes
        assert 0.9 * resolution**2 <= height * width <= resolution**2
        assert max(height / width, width / height) <= limit
    assert bucket_sizes(resolution, multiple=multiple, max_aspect=1.0) == [(resolution, resolution)]


def test_the_nearest_shape_is_chosen_and_a_quarter_turn_gets_its_mirror():
    sizes = bucket_sizes(1024)
    assert sizes[nearest_bucket((300, 300), sizes)] == (1024, 1024)
    assert sizes[nearest_bucket((1080, 1920), sizes)] == (768, 1344)
    assert sizes[nearest_bucket((100, 1000), sizes)] == (512, 2048)
    for height, width in ((3, 4), (5, 9), (11, 10), (700, 1333)):
        turned = sizes[nearest_bucket((width, height), sizes)]
        assert sizes[nearest_bucket((height, width), sizes)] == turned[::-1]


def test_the_six_numbers_say_what_was_cut():
    fitted, ids = fit_to_bucket(gradient(40, 100), (40, 60))
    assert ids.tolist() == [40, 100, 0, 20, 40, 60] and ids.dtype == torch.float32
    assert np.array(fitted)[0, :, 0].tolist() == list(range(20, 80))
    fitted, ids = fit_to_bucket(gradient(90, 60), (60, 60))
    assert ids.tolist() == [90, 60, 15, 0, 60, 60]
    assert np.array(fitted)[:, 0, 1].tolist() == list(range(15, 75))


def test_pictures_are_scaled_to_cover_and_cuts_are_in_scaled_pixels():
    fitted, ids = fit_to_bucket(gradient(80, 200), (40, 60))  # covered by 40 x 100
    assert fitted.size == (60, 40) and ids.tolist() == [80, 200, 0, 20, 40, 60]
    red = np.array(fitted)[20, :, 0].astype(int)
    assert abs(red[0] - 40.5) <= 1 and abs(red[-1] - 158.5) <= 1
    for height, width in ((7, 5), (33, 100), (101, 67)):
        fitted, ids = fit_to_bucket(gradient(height, width), (48, 40))
        assert fitted.size == (40, 48)
        assert ids[2] == 0 or ids[3] == 0  # one side fits


def test_random_crops_are_keyed_and_say_where_they_are():
    starts = set()
    for row in range(40):
        fitted, ids = fit_to_bucket(gradient(40, 50), (40, 40), crop="random", key=Key(0, 0, (row,)))
        left = int(ids[3])
        assert np.array(fitted)[0, :, 0].tolist() == list(range(left, left + 40))
        starts.add(left)
    assert min(starts) == 0 and max(starts) == 10 and len(starts) > 8
    with pytest.raises(UserError, match="a random crop is drawn by a key"):
        fit_to_bucket(gradient(8, 9), (8, 8), crop="random")


def test_a_source_in_buckets(tmp_path):
    source = write(tmp_path, [(40, 40), (40, 80), (90, 40), (30, 50)])
    data = BucketedPictures(source, 32, multiple=8)
    seen = []
    numbers = data.bucket_numbers(lambda done, total: seen.append((done, total)))
    assert seen == [(n, 4) for n in (1, 2, 3, 4)]
    for row in range(4):
        sample = data[row]
        height, width = data.buckets[int(numbers[row])]
        assert sample.image.shape == (3, height, width) and sample.prompt == f"picture {row}"
        assert sample.time_ids[:2].tolist() == list(source.picture_size(row))
        assert sample.time_ids[4:].tolist() == [height, width]
    assert data.buckets[int(numbers[0])] == (32, 32) and data.buckets[int(numbers[3])] == (24, 40)
    batch = collate([data[0], data[0]]).to("cpu")
    assert batch.time_ids.tolist() == [[40, 40, 0, 0, 32, 32]] * 2
    with pytest.raises(UserError, match="draw rows of one bucket at a time"):
        collate([data[0], data[1]])


def test_random_crops_of_a_source_depend_on_seed_and_row_alone(tmp_path):
    source = write(tmp_path, [(40, 60)] * 6)
    data = {
        seed: BucketedPictures(source, 40, multiple=8, max_aspect=1.0, crop="random", seed=seed)
        for seed in (0, 1)
    }
    lefts = {seed: [int(data[seed][row].time_ids[3]) for row in range(6)] for seed in data}
    assert len(set(lefts[0])) > 2 and lefts[0] != lefts[1]
    assert [int(data[0][row].time_ids[3]) for row in reversed(range(6))] == lefts[0][::-1]


def test_what_makes_no_sense(tmp_path):
    for arguments, message in (
        ({"resolution": 100}, "resolution 100 is no multiple of 64"),
        ({"resolution": 64, "max_aspect": 0.5}, "max_aspect is 0.5; .* at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            BucketedPictures(write(tmp_path, [(8, 8)]), **arguments)


def test_unknown_words_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its own check would come first
    with pytest.raises(UserError, match="crop is 'left'; write center or random"):
        BucketedPictures(write(tmp_path, [(8, 8)]), 64, crop="left")


# --- order -----------------------------------------------------------------------------------------------

SIZES = (23, 4, 10, 1)  # rows per bucket; batches of 4 leave 3, 0, 2 and 1
NUMBERS = torch.cat([torch.full((size,), bucket) for bucket, size in enumerate(SIZES)])[
    torch.randperm(38, generator=torch.Generator().manual_seed(0))
]


def test_every_batch_is_of_one_bucket_and_no_row_comes_twice():
    order = BucketOrder(NUMBERS, 4, seed=0)
    assert (order.rows_per_epoch, order.dropped_per_epoch, order.never_read) == (32, 6, 1)
    for epoch in range(5):
        rows = order.epoch(epoch)
        assert len(rows) == len(set(rows.tolist())) == 32
        batches = NUMBERS[rows].reshape(-1, 4)
        assert bool((batches == batches[:, :1]).all())
        assert torch.bincount(batches[:, 0], minlength=4).tolist() == [5, 1, 2, 0]


def test_buckets_are_mixed_within_an_epoch():
    firsts = {tuple(NUMBERS[BucketOrder(NUMBERS, 4, seed=seed).epoch(0)][::4].tolist()) for seed in range(8)}
    assert len(firsts) > 4 and any(list(first) != sorted(first) for first in firsts)


def test_another_epoch_drops_others_and_a_seed_repeats():
    order = BucketOrder(NUMBERS, 4, seed=3)
    dropped = [set(range(38)) - set(order.epoch(epoch).tolist()) for epoch in range(30)]
    assert len({frozenset(rows) for rows in dropped}) > 20
    assert set.intersection(*dropped) == set(torch.nonzero(NUMBERS == 3).flatten().tolist())
    again = BucketOrder(NUMBERS, 4, seed=3)
    assert torch.equal(again.epoch(7), order.epoch(7))
    assert not torch.equal(BucketOrder(NUMBERS, 4, seed=4).epoch(7), order.epoch(7))
    assert not torch.equal(BucketOrder(NUMBERS, 4, seed=3, purpose="other").epoch(7), order.epoch(7))


def test_rows_of_global_samples_run_through_the_epochs():
    order = BucketOrder(NUMBERS, 4, seed=0)
    rows = [order.row(index) for index in range(3 * 32)]
    assert rows == [row for epoch in range(3) for row in order.epoch(epoch).tolist()]


def test_orders_that_make_no_sense():
    with pytest.raises(UserError, match=r"no bucket has the 24 pictures of a batch \(the fullest has 23\)"):
        BucketOrder(NUMBERS, 24, seed=0)
    with pytest.raises(UserError, match="the batch size is 0"):
        BucketOrder(NUMBERS, 0, seed=0)
