"""Tiny random detectors against transformers' own model and post-processing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent / "scorers"))

from tiny_scorers import spread

from tiny_checkpoints import LABELS, NAMES, NORMAL, save_checkpoint, write_processor
from unifl.errors import UserError
from unifl.feedback.detectors import (
    LEAST,
    Detection,
    Detector,
    _distinct,
    _read_boxes,
    _squared,
    open_detector,
    overlap,
)
from unifl.feedback.preprocessing import read_preprocessing
from unifl.testing import tiny_pipeline

RESCALE = {"do_rescale": True, "rescale_factor": 1 / 255}


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, 48, 96, generator=torch.Generator().manual_seed(1))


def yolos(folder):
    config = hf.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=5,
        **LABELS,
    )
    model = spread(hf.YolosForObjectDetection(config))
    model.save_pretrained(folder)
    write_processor(folder, {"size": {"height": 64, "width": 64}, "resample": 2, **NORMAL, **RESCALE})
    return model


def owl(folder):
    tokenizer = tiny_pipeline("sd15").tokenizer
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_dim": 16}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {**sizes, "image_size": 64, "patch_size": 16}
    config = hf.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    model = spread(hf.Owlv2ForObjectDetection(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_processor(folder, {"size": {"height": 64, "width": 64}, "resample": 2, **NORMAL, **RESCALE})
    return model, tokenizer


def shown(images, size=(64, 64)):
    """What the processors do, in one line each: scale, normalise."""
    small = torch.nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(NORMAL[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    return (small - mean) / std


def test_boxes_are_those_of_transformers(tmp_path, pictures):
    model = yolos(tmp_path)
    detector = open_detector(str(tmp_path))
    assert isinstance(detector, Detector) and detector.labels == frozenset(NAMES)
    found = detector(pictures, [NAMES, ["square"]])
    with torch.no_grad():
        answer = model(pixel_values=shown(pictures))
    probabilities = answer.logits.softmax(-1)
    for row, wanted in enumerate([NAMES, ["square"]]):
        columns = [NAMES.index(name) for name in wanted]
        assert len(found[row]) == int((probabilities[row][:, columns] >= LEAST).sum()) > 0
        assert {one.label for one in found[row]} <= set(wanted)
        assert [one.score for one in found[row]] == sorted((one.score for one in found[row]), reverse=True)
    there = hf.YolosImageProcessorPil().post_process_object_detection(
        answer, threshold=LEAST, target_sizes=[(48, 96)] * 2
    )[0]
    for score, label, box in zip(there["scores"], there["labels"], there["boxes"], strict=True):
        same = [one for one in found[0] if one.label == NAMES[label] and abs(one.score - score) < 1e-5]
        inside = box.clamp(min=0).minimum(torch.tensor([96.0, 48.0, 96.0, 48.0]))
        assert any(torch.tensor(one.box).allclose(inside, atol=1e-3) for one in same)


def test_one_output_per_label_is_a_sigmoid():
    logits = torch.tensor([[[3.0, -9.0], [-9.0, 2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 1.0, 0.2]]])
    answer = SimpleNamespace(logits=logits, pred_boxes=boxes)
    found = _read_boxes(answer, ["cat", "dog"], ["cat", "dog"], (100, 200), 0)
    assert [(one.label, round(one.score, 3)) for one in found] == [("cat", 0.953), ("dog", 0.881)]
    assert found[0].box == pytest.approx((80, 30, 120, 70), abs=1e-3)
    assert found[1].box == pytest.approx((0, 40, 150, 60), abs=1e-3)  # cut off at the picture


def test_masks_are_those_of_the_queries(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("unifl.feedback.detectors._SHORTER", 64)
    save_checkpoint("mask2former", tmp_path)
    detector = open_detector(str(tmp_path))
    found = detector(pictures, [NAMES, []])
    assert found[1] == [] and found[0]
    model = hf.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        answer = model(pixel_values=shown(pictures[:1], (64, 128)))
    probabilities = answer.class_queries_logits[0].softmax(-1)
    masks = torch.nn.functional.interpolate(
        answer.masks_queries_logits, size=(48, 96), mode="bilinear", align_corners=False
    )[0].sigmoid()
    expected = sorted(
        float(p * mask[mask > 0.5].mean())
        for row, mask in zip(probabilities[:, :3], masks, strict=True)
        for p in row
        if p >= LEAST and (mask > 0.5).any()
    )
    mine = sorted(one.score for one in found[0])
    torch.testing.assert_close(
        torch.tensor(mine), torch.tensor([s for s in expected if s >= LEAST]), atol=1e-3, rtol=1e-3
    )
    for one in found[0]:
        left, top, right, bottom = (int(value) for value in one.box)
        outside = one.mask.clone()
        outside[top:bottom, left:right] = False
        assert one.mask.shape == (48, 96) and not outside.any() and one.mask[top].any()


@pytest.mark.parametrize("name", ["mask2former", "maskformer"])
def test_a_segmenter_looks_at_the_size_of_the_published_detector(tmp_path, name):
    """mmdet: a shorter side of 800 px, a longer one of at most 1333, both a multiple of 32."""
    save_checkpoint(name, tmp_path)
    target = open_detector(str(tmp_path)).preprocessing.target
    assert target(512, 512) == target(1024, 1024) == (800, 800)
    assert target(512, 768) == (800, 1216) and target(1024, 512) == (1344, 672)


def test_words_are_looked_for_on_a_square(tmp_path, pictures):
    model, tokenizer = owl(tmp_path)
    detector = open_detector(str(tmp_path))
    assert detector.labels is None
    square = torch.zeros(1, 3, 96, 96)
    square[:, :, :48] = pictures[:1]  # black below
    tokens = tokenizer(
        ["a photo of a cat", "a photo of a dog"],
        padding="max_length",
        max_length=16,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        answer = model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=shown(square),
        )
    scores = answer.logits[0].sigmoid()
    found = detector(pictures, [["cat", "dog"], ["cat"]])
    assert found[0] and found[0][0].score == pytest.approx(float(scores.max()), abs=1e-4)
    row, column = divmod(int(scores.argmax()), 2)
    x, y, width, height = (96 * answer.pred_boxes[0, row]).tolist()
    expected = (
        max(x - width / 2, 0),
        max(y - height / 2, 0),
        min(x + width / 2, 96),
        min(y + height / 2, 48),
    )
    assert found[0][0].label == ["cat", "dog"][column]
    assert found[0][0].box == pytest.approx(expected, abs=1e-2)
    for a in found[0]:
        assert all(a is b or a.label != b.label or overlap(a.box, b.box) < 0.5 for b in found[0])


@pytest.mark.parametrize(("size", "most", "mean"), [(96, 1e-3, 1e-3), (192, 1e-2, 0.01), (64, 30, 0.6)])
@pytest.mark.parametrize("upright", [False, True])
def test_owl_is_shown_what_its_own_image_processor_makes(size, most, mean, upright):
    """In 255ths, but for the edge, where scaling up mirrors there and repeats here; scaling down has another filter."""
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    y, x = torch.meshgrid(torch.arange(60) / 96, torch.arange(96) / 96, indexing="ij")
    picture = (255 * torch.stack([x, y, 0.5 + 0.4 * torch.sin(6 * x + 3 * y)])).round().to(torch.uint8)
    picture = picture.transpose(1, 2) if upright else picture
    theirs = Owlv2ImageProcessorPil(size={"height": size, "width": size})
    wanted = theirs(images=[picture.numpy()], return_tensors="pt", input_data_format="channels_first")
    ours = read_preprocessing(theirs.to_dict(), model="owl")(_squared(picture.float() / 255)[None])
    off = 255 * torch.tensor(theirs.image_std).view(3, 1, 1) * (ours - wanted["pixel_values"])[0].abs()
    assert off[:, 4:-4, 4:-4].max() < most and off.mean() < mean


def test_one_object_that_is_found_twice_counts_once():
    boxes = ((0, 0, 10, 10), (1, 0, 11, 10), (0, 0, 10, 10), (8, 0, 18, 10))
    found = [
        Detection(label, 0.9, tuple(map(float, box)))
        for label, box in zip(("cat", "cat", "dog", "cat"), boxes, strict=True)
    ]
    assert [found.index(one) for one in _distinct(found)] == [0, 2, 3]
    assert overlap((0.0, 0.0, 2.0, 2.0), (1.0, 0.0, 3.0, 2.0)) == pytest.approx(1 / 3)
    assert overlap((0.0, 0.0, 1.0, 1.0), (2.0, 2.0, 3.0, 3.0)) == 0


def test_other_models_are_refused(tmp_path):
    save_checkpoint("segformer", tmp_path)
    with pytest.raises(UserError, match="holds SegformerForSemanticSegmentation, but a detector is"):
        open_detector(str(tmp_path))
    with pytest.raises(UserError, match="there is no checkpoint at"):
        open_detector(str(tmp_path / "nothing"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard"}))
    with pytest.raises(UserError, match="is no model that transformers knows"):
        open_detector(str(tmp_path))
