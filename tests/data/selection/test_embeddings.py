from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from unifl.data.selection import cache
from unifl.data.selection.cache import embed_in_shards
from unifl.data.selection.embeddings import load_embeddings, load_text_encoder
from unifl.errors import UserError
from unifl.testing import tiny_folder, tiny_pipeline

TEXTS = ["a red circle", "a photo of a small blue cat and a large green dog", "dog"]


def _tokens(pipeline, texts):
    return pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")


def test_a_diffusers_folder_gives_the_state_at_the_end_of_the_text(tmp_path):
    pipeline = tiny_pipeline("sd15")
    encoder = load_text_encoder(tiny_folder("sd15", tmp_path / "model"))
    with torch.no_grad():
        expected = pipeline.text_encoder(**_tokens(pipeline, TEXTS)).pooler_output
    torch.testing.assert_close(encoder(TEXTS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(TEXTS[2:]), expected[2:], atol=1e-5, rtol=0)  # padding plays no part


def test_a_clip_model_gives_projected_embeddings(tmp_path):
    pipeline = tiny_pipeline("sd15")
    torch.manual_seed(0)
    vision = dict(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = CLIPConfig(
        text_config=pipeline.text_encoder.config.to_dict(), vision_config=vision, projection_dim=12
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    pipeline.tokenizer.save_pretrained(tmp_path)
    found = load_text_encoder(tmp_path)(TEXTS)
    assert found.shape == (3, 12)
    tokens = _tokens(pipeline, TEXTS)
    with torch.no_grad():
        hidden = model.text_model(**tokens).pooler_output
        expected = model.text_projection(hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_other_models_give_the_mean_over_tokens(tmp_path):
    pipeline = tiny_pipeline("sd15")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pipeline.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=80,
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    pipeline.tokenizer.save_pretrained(tmp_path)
    encoder = load_text_encoder(tmp_path)
    together, alone = encoder(TEXTS), torch.cat([encoder([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)  # padding is left out of the mean
    ids = pipeline.tokenizer(TEXTS[2], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(alone[2], model(**ids).last_hidden_state[0].mean(dim=0))


def test_a_projection_that_is_missing_is_not_made_up(tmp_path):
    pipeline = tiny_pipeline("sd15")
    CLIPTextModelWithProjection(pipeline.text_encoder.config).save_pretrained(tmp_path)
    pipeline.tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    pipeline.text_encoder.save_pretrained(tmp_path)  # weights without the projection under the old config
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"lacks weights \(text_projection"):
        load_text_encoder(tmp_path)


def test_what_cannot_be_loaded_is_explained(tmp_path):
    with pytest.raises(
        UserError, match=r"cannot load a text encoder from '.*none'.*embeddings in a \.npy file"
    ):
        load_text_encoder(str(tmp_path / "none"))


def test_the_fingerprint_follows_the_weights():
    from unifl.data.selection.embeddings import _fingerprint

    first, again, other = (tiny_pipeline("sd15", seed=seed).text_encoder for seed in (0, 0, 1))
    assert isinstance(first, CLIPTextModel)
    assert _fingerprint(first) == _fingerprint(again) != _fingerprint(other)


class _Counting:
    fingerprint = "a"

    def __init__(self, fail_after=None):
        self.seen, self._fail_after = [], fail_after

    def __call__(self, texts):
        if self._fail_after is not None and len(self.seen) >= self._fail_after:
            raise KeyboardInterrupt
        self.seen += texts
        return torch.tensor([[float(len(text)), float(text[-1])] for text in texts])


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_SHARD", 4)
    texts = [f"text {index}" for index in range(10)]
    with pytest.raises(KeyboardInterrupt):
        embed_in_shards(texts, _Counting(fail_after=6), tmp_path, batch_size=2)
    assert len(list(tmp_path.iterdir())) == 1  # the shard that was not finished left nothing behind
    second, done = _Counting(), []
    found = embed_in_shards(texts, second, tmp_path, batch_size=3, progress=lambda *step: done.append(step))
    assert second.seen == texts[4:]
    assert done[-1] == (10, 10)
    assert found.equal(_Counting()(texts))
    third = _Counting()
    assert embed_in_shards(texts, third, tmp_path).equal(found) and not third.seen


def test_other_texts_or_another_encoder_read_no_old_file(tmp_path):
    embed_in_shards(["x 1", "y 2"], _Counting(), tmp_path)
    for texts, fingerprint in ((["x 1", "z 2"], "a"), (["x 1", "y 2"], "b")):
        encoder = _Counting()
        encoder.fingerprint = fingerprint
        embed_in_shards(texts, encoder, tmp_path)
        assert encoder.seen == texts


def test_embeddings_from_a_file(tmp_path):
    path = tmp_path / "a.npy"
    for dtype in (np.float16, np.float32, np.float64):
        array = np.random.default_rng(0).standard_normal((5, 3)).astype(dtype)
        np.save(path, array)
        found = load_embeddings(path, 5)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), array.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3)), r"has shape \(4, 3\); it needs one row per prompt: \(5, d\)"),
        (np.zeros(5), r"has shape \(5,\)"),
        (np.zeros((5, 3), dtype=np.int64), "holds int64; embeddings are floating-point"),
        (np.array([[None]] * 5), "is no .npy file"),
    ],
)
def test_a_wrong_file_of_embeddings_is_explained(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        load_embeddings(tmp_path / "a.npy", 5)


def test_a_file_of_embeddings_that_is_missing_or_something_else(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_embeddings(tmp_path / "a.npy", 5)
    (tmp_path / "a.npy").write_text("text")
    with pytest.raises(UserError, match="is no .npy file"):
        load_embeddings(tmp_path / "a.npy", 5)
