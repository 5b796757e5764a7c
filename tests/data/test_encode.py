from __future__ import annotations

import json

import jaxtyping
import pytest
import torch
from PIL import Image

from unifl.data import BucketedPictures, Sample
from unifl.data.encode import encode_source
from unifl.data.encoded import EncodedPictures, collate_encoded
from unifl.errors import UserError
from unifl.models import FullTraining, make_generator
from unifl.randomness import Key
from unifl.testing import tiny_pipeline

SIZES = [(32, 32), (40, 60), (90, 40), (32, 33), (20, 80), (64, 64), (60, 41), (30, 30), (40, 60)]


class Pictures:
    """A source of whole pictures that counts what is read of it."""

    def __init__(self, sizes=SIZES, stop=None):
        self.sizes, self.stop, self.reads = sizes, stop, []

    def __len__(self):
        return len(self.sizes)

    def picture(self, index):
        if index == self.stop:
            raise KeyboardInterrupt
        self.reads.append(index)
        height, width = self.sizes[index]
        red = Image.linear_gradient("L").resize((width, height))
        return Image.merge("RGB", (red, red.rotate(180), Image.new("L", (width, height), 20 * index)))

    def picture_size(self, index):
        return self.sizes[index]

    def caption(self, index):
        return f"picture {index}"


def bucketed(**changes):
    return BucketedPictures(Pictures(**changes), 32, multiple=8)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def generator():
    return make_generator(tiny_pipeline("sdxl"))


def test_buckets_keep_their_pictures_captions_and_numbers(generator, tmp_path):
    source = bucketed()
    cache = encode_source(generator, source, tmp_path, rows_per_shard=4, batch_size=2, with_text=True)
    assert cache.bucket_numbers().tolist() == source.bucket_numbers().tolist()
    assert len(set(cache.bucket_numbers().tolist())) > 3 and cache.buckets == source.buckets
    for row in range(len(SIZES)):
        found, sample = cache[row], source[row]
        mean, std = generator.posterior(sample.image[None])
        torch.testing.assert_close(found.mean, mean[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.std, std[0], rtol=1e-5, atol=1e-6)
        assert found.prompt == f"picture {row}" and torch.equal(found.time_ids, sample.time_ids)
        shape = cache.manifest.latent_shapes[int(cache.bucket_numbers()[row])]
        assert tuple(found.mean.shape) == tuple(shape)
    batch = collate_encoded([cache[1], cache[8]])
    latents = batch.draw(Key(0, 0, (0, 1)))
    predicted = generator.denoise("student", latents, torch.tensor([0.5, 1.0]), batch.cond)
    assert predicted.x0.shape == latents.shape and batch.cond.time_ids[:, :2].tolist() == [[40, 60]] * 2


def test_interrupted_encoding_goes_on_at_the_first_missing_file_to_the_same_bits(generator, tmp_path):
    options = {"rows_per_shard": 2, "batch_size": 2, "with_text": True}
    whole = files(encode_source(generator, bucketed(), tmp_path / "whole", **options).folder)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        encode_source(generator, bucketed(stop=5), folder, **options)
    assert sorted(files(folder)) == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    with pytest.raises(UserError, match=r"is not finished: 2 of 5 shards are there; encode the same data"):
        EncodedPictures(folder)
    source, seen = bucketed(), []
    encode_source(generator, source, folder, progress=lambda *done: seen.append(done), **options)
    assert files(folder) == whole
    assert seen == [(done, 9) for done in range(4, 10)]
    assert source.source.reads == [0, *range(4, 9)]  # the first row is looked at


def test_a_finished_cache_is_found_and_a_lost_file_made_again(generator, tmp_path):
    whole = files(encode_source(generator, bucketed(), tmp_path, rows_per_shard=3).folder)
    source = bucketed()
    encode_source(generator, source, tmp_path, rows_per_shard=3)
    assert source.source.reads == [0]
    (tmp_path / "shard-00001.safetensors").unlink()
    encode_source(generator, source, tmp_path, rows_per_shard=3)
    assert files(tmp_path) == whole
    (tmp_path / "shard-00001.safetensors").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"shard-00001\.safetensors is cut short or altered; remove it, and it is made"
    ):
        encode_source(generator, source, tmp_path, rows_per_shard=3)


def test_a_folder_of_something_else_is_refused_before_any_work(generator, tmp_path):
    encode_source(generator, bucketed(), tmp_path, rows_per_shard=3)
    before = files(tmp_path)
    other = bucketed()
    other.source.caption = lambda row: f"drawing {row}"
    fewer = bucketed(sizes=SIZES[:5])
    changed = make_generator(tiny_pipeline("sdxl", seed=1))
    for arguments, options, message in (
        ((generator, other), {}, r"row 0 of .* is 'picture 0', and of the data 'drawing 0': other data"),
        ((generator, fewer), {}, "begun with rows 9, and this asks for 5"),
        (
            (generator, bucketed()),
            {"dtype": "float16"},
            "begun with dtype float32, and this asks for float16",
        ),
        ((generator, bucketed()), {"with_text": True}, "begun with with_text False, and this asks for True"),
        ((changed, bucketed()), {}, "and this model, a model in memory, has another one"),
    ):
        with pytest.raises(UserError, match=message):
            encode_source(*arguments, tmp_path, **{"rows_per_shard": 3, **options})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        encode_source(generator, bucketed(), tmp_path, rows_per_shard=3)
    assert {name: content for name, content in files(tmp_path).items() if name != "manifest.json"} == {
        name: content for name, content in before.items() if name != "manifest.json"
    }


def test_manifests_of_nothing_and_of_other_versions(generator, tmp_path):
    with pytest.raises(UserError, match=r"holds no encoded data \(no manifest\.json\)"):
        EncodedPictures(tmp_path)
    encode_source(generator, bucketed(), tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(UserError, match="has format 99, and this version reads 1; encode again"):
        EncodedPictures(tmp_path)


def test_pictures_of_other_sizes_than_the_models(generator, tmp_path):
    big = [Sample(torch.rand(3, 64, 64), "a")]
    with pytest.raises(
        UserError, match=r"made for 64 x 64 px and the model draws 32 x 32; set the data's resolution"
    ):
        encode_source(generator, big, tmp_path)
    mixed = [Sample(torch.rand(3, 32, 32), "a"), *big]
    with pytest.raises(
        UserError, match=r"the picture of row 1 is 64 x 64 px, and the first is of another size"
    ):
        encode_source(generator, mixed, tmp_path)
    odd = BucketedPictures(Pictures(), 32, multiple=2)
    with pytest.raises(UserError, match=r"is no multiple of the autoencoder's 4; set the buckets' multiple"):
        encode_source(generator, odd, tmp_path / "odd")


def test_latents_that_are_not_finite_name_their_row(tmp_path):
    broken = make_generator(tiny_pipeline("sd15"))
    pictures = [Sample(torch.full((3, 32, 32), value), "a") for value in (0.1, 0.2, float("nan"), 0.3)]
    with pytest.raises(UserError, match="no finite latents for row 2; load the model in float32"):
        encode_source(broken, pictures, tmp_path)
    assert sorted(files(tmp_path)) == ["manifest.json"]


def test_what_makes_no_sense(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # its own check of dtype would come first
    for source, options, message in (
        ([], {}, "the data to encode have no rows"),
        (bucketed(), {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        (bucketed(), {"rows_per_shard": 0}, "rows_per_shard is 0"),
        (bucketed(), {"dtype": "int8"}, "dtype is 'int8'; write float32 or float16"),
    ):
        with pytest.raises(UserError, match=message):
            encode_source(generator, source, tmp_path, **options)
    training = make_generator(tiny_pipeline("sdxl"), train=FullTraining(text_encoder=True))
    with pytest.raises(UserError, match="text encoder of this model trains, .* set with_text=False"):
        encode_source(training, bucketed(), tmp_path, with_text=True)


def test_room_on_the_disk_is_asked_for_first(generator, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("unifl.data.encode.require_free_space", lambda folder, size: asked.append(size))
    cache = encode_source(generator, [Sample(torch.rand(3, 32, 32), "a")] * 4, tmp_path, with_text=True)
    written = sum(record.num_bytes for record in cache.manifest.shards.values())
    assert 0 < written - asked[0] < 2000  # headers and captions
