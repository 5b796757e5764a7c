from __future__ import annotations

import pytest
import torch

from unifl.data import BucketOrder, Sample
from unifl.data.encode import encode_source
from unifl.data.encoded import EncodedPictures, collate_encoded
from unifl.errors import UserError
from unifl.models import FullTraining, make_generator
from unifl.randomness import Key
from unifl.testing import tiny_pipeline

PROMPTS = ["a red circle", "", "a photo of a cat", "a blue square", "ein Vögelchen", "dog", "cat"]


def samples(size=(32, 32), number=7):
    noise = torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(0))
    return [Sample(image, prompt) for image, prompt in zip(noise, PROMPTS, strict=False)]


@pytest.fixture(scope="module")
def generator():
    return make_generator(tiny_pipeline("sdxl"))


@pytest.fixture
def cache(generator, tmp_path):
    return encode_source(generator, samples(), tmp_path / "cache", rows_per_shard=3, with_text=True)


def test_draws_are_those_of_the_encoder(generator, cache):
    rows = [5, 0, 6, 2]
    batch = collate_encoded([cache[row] for row in rows]).to("cpu")
    key = Key(3, 8, (40, 41, 42, 43))
    images = torch.stack([samples()[row].image for row in rows])
    expected = generator.encode(images, key=key)
    assert (expected - generator.encode(images)).abs().mean() > 1e-3  # the noise is not lost in the tolerance
    torch.testing.assert_close(batch.draw(key), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(batch.draw(Key(3, 9, key.indices)), expected, atol=1e-3)
    alone = collate_encoded([cache[0]]).draw(Key(3, 8, (41,)))
    torch.testing.assert_close(alone, batch.draw(key)[1:2], rtol=0, atol=0)


def test_half_precision_costs_what_half_precision_costs(generator, tmp_path):
    half = encode_source(generator, samples(), tmp_path, dtype="float16", with_text=True)
    full = generator.posterior(torch.stack([sample.image for sample in samples()]))
    batch = collate_encoded([half[row] for row in range(7)])
    assert batch.mean.dtype == batch.std.dtype == batch.embeds.dtype == torch.float32
    for found, expected in zip((batch.mean, batch.std), full, strict=True):
        torch.testing.assert_close(found, expected, rtol=2**-11, atol=1e-6)
    assert not torch.equal(batch.mean, full[0])


def test_embeddings_and_captions_are_those_of_the_encoder(generator, cache):
    batch = collate_encoded(list(cache))
    expected = generator.encode_prompts(PROMPTS)
    assert batch.prompts == PROMPTS and [cache.caption(row) for row in range(7)] == PROMPTS
    assert torch.equal(batch.cond.embeds, expected.embeds) and torch.equal(batch.cond.pooled, expected.pooled)
    assert batch.cond.time_ids is None  # of a picture about which nothing is known


def test_dropped_captions_take_the_empty_prompts_embeddings(generator, cache):
    batch = collate_encoded(list(cache))
    key, empty = Key(0, 0, tuple(range(7))), generator.encode_prompts([""])
    fewer = batch.drop_captions(0.5, key, empty=empty)
    gone = [old != new for old, new in zip(batch.prompts, fewer.prompts, strict=True)]
    assert any(gone) and not all(gone)
    expected = generator.encode_prompts(fewer.prompts)
    assert torch.equal(fewer.embeds, expected.embeds) and torch.equal(fewer.pooled, expected.pooled)
    assert torch.equal(fewer.mean, batch.mean)
    with pytest.raises(UserError, match="the empty prompt's are needed"):
        batch.drop_captions(0.5, key)


def test_rows_by_number(cache):
    assert len(cache) == 7 and cache.bucket_numbers().tolist() == [0] * 7
    assert cache[6].prompt == "cat" and not torch.equal(cache[6].mean, cache[5].mean)
    for row in (-1, 7):
        with pytest.raises(IndexError):
            _ = cache[row]


def test_few_files_are_open_at_a_time(generator, tmp_path, monkeypatch):
    cache = encode_source(generator, samples(), tmp_path, rows_per_shard=1)
    monkeypatch.setattr("unifl.data.encoded._OPEN_SHARDS", 2)
    order = [0, 3, 6, 0, 1, 5, 2, 0]
    first = [cache[row].mean for row in order]
    assert len(cache._open) == 2
    assert all(torch.equal(cache[row].mean, mean) for row, mean in zip(order, first, strict=True))


def test_a_file_that_is_cut_missing_or_altered_is_named(cache):
    path = cache.folder / "shard-00001.safetensors"
    whole = path.read_bytes()
    cache.validate()
    altered = bytearray(whole)
    altered[-5] ^= 1
    path.write_bytes(altered)
    again = EncodedPictures(cache.folder)  # of the right size
    with pytest.raises(
        UserError, match=r"shard-00001\.safetensors is missing, cut short or altered; remove it"
    ):
        again.validate()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"shard-00001\.safetensors is missing, cut short or altered"):
        EncodedPictures(cache.folder)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.safetensors is missing"):
        EncodedPictures(cache.folder)


@pytest.mark.parametrize(
    "damage", [lambda whole: b"\xff" * len(whole), lambda whole: whole[: len(whole) // 2]]
)
def test_a_file_that_is_damaged_after_opening_is_named(cache, damage):
    path = cache.folder / "shard-00002.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"shard-00002\.safetensors is missing, cut short or altered"):
        _ = cache[6]


def test_batches_of_several_sizes_or_of_nothing(generator, cache):
    from dataclasses import replace

    other = replace(cache[1], mean=cache[1].mean[:, :4], std=cache[1].std[:, :4])
    with pytest.raises(UserError, match=r"several sizes .*\(4, 8\), \(8, 8\).* rows of one bucket"):
        collate_encoded([cache[0], other])
    with pytest.raises(UserError, match="no samples"):
        collate_encoded([])


# --- whose cache it is -----------------------------------------------------------------------------------


def test_the_encoder_that_wrote_it_may_read_it(cache):
    cache.check(make_generator(tiny_pipeline("sdxl")))
    trained = make_generator(tiny_pipeline("sdxl"), train=FullTraining())
    with torch.no_grad():
        next(trained.pipeline.unet.parameters()).add_(1)
    cache.check(trained)  # the denoiser does not encode
    with torch.no_grad():
        next(trained.pipeline.vae.encoder.parameters()).add_(1)
    with pytest.raises(UserError, match="another"):
        cache.check(trained)  # the autoencoder does


def test_other_encoders_are_refused_with_both_sides(cache):
    other = make_generator(tiny_pipeline("sdxl", seed=1))
    with pytest.raises(
        UserError, match=r"from the autoencoder of a model in memory \(sha256 \w{12}\), and .* another"
    ):
        cache.check(other)
    changed = tiny_pipeline("sdxl")
    with torch.no_grad():
        next(changed.vae.encoder.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(UserError, match="encode the data again into another folder, or use the model"):
        cache.check(make_generator(changed))
    changed = tiny_pipeline("sdxl")
    changed.vae.register_to_config(scaling_factor=0.2)
    with pytest.raises(UserError, match=r"scaled with scaling_factor 0\.13025, and this model has 0\.2"):
        cache.check(make_generator(changed))
    changed = tiny_pipeline("sdxl")
    with torch.no_grad():
        next(changed.text_encoder_2.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(UserError, match=r"embeddings in .* are from the text encoders of .* has others"):
        cache.check(make_generator(changed))


def test_text_encoders_count_only_where_embeddings_are_kept(generator, tmp_path):
    cache = encode_source(generator, samples(), tmp_path)
    assert cache[0].embeds is None and collate_encoded([cache[0]]).cond is None
    changed = tiny_pipeline("sdxl")
    with torch.no_grad():
        next(changed.text_encoder.parameters()).add_(1)
    cache.check(make_generator(changed))
    cache.check(make_generator(tiny_pipeline("sdxl"), train=FullTraining(text_encoder=True)))


def test_another_resolution_is_refused(cache):
    with pytest.raises(
        UserError, match=r"are of pictures of 32 x 32 px, and this model draws 64 x 64 px; set its"
    ):
        cache.check(make_generator(tiny_pipeline("sdxl"), resolution=64))


def test_embeddings_of_an_encoder_that_trains_are_refused(cache):
    with pytest.raises(UserError, match="this run trains a text encoder; .* with_text=False"):
        cache.check(make_generator(tiny_pipeline("sdxl"), train=FullTraining(text_encoder=True)))


def test_an_order_over_buckets_reads_from_it(cache):
    order = BucketOrder(cache.bucket_numbers(), 3, seed=0)
    assert (order.rows_per_epoch, order.dropped_per_epoch) == (6, 1)
