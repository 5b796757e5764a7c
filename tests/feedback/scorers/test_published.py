"""Published weights against recorded scores of their authors, and against transformers' own path behind Pillow.

Run by hand with `pytest -m network`: it downloads about 12 GB. Most pictures are those of ImageReward's README
(github.com/THUDM/ImageReward, assets/images), which says what its own package gives for them; transformers and
torchmetrics record what CLIP and SigLIP give for theirs.
"""

from __future__ import annotations

import io
import urllib.request

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from unifl.feedback.scorers import open_scorer

pytestmark = pytest.mark.network

PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
RECORDED = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
"""ImageReward-v1.0, from the README's "Example Use"; it says that digits depend on the device."""
ADDRESS = "https://raw.githubusercontent.com/THUDM/ImageReward/main/assets/images/{}.webp"


@pytest.fixture(scope="module")
def files():
    found = []
    for number in range(1, 5):
        with urllib.request.urlopen(ADDRESS.format(number), timeout=60) as answer:
            found.append(Image.open(io.BytesIO(answer.read())).convert("RGB"))
    return found


def scored(scorer, files, prompt=PROMPT):
    """One by one, since sizes differ."""
    scores = []
    for file in files:
        images = torch.from_numpy(np.asarray(file)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            scores.append(float(scorer(images, [prompt])[0]))
    return scores


def test_imagereward_gives_the_scores_of_its_readme(files):
    assert scored(open_scorer("imagereward"), files) == pytest.approx(RECORDED, abs=0.05)


@pytest.fixture(scope="module")
def cats():
    address = "http://images.cocodataset.org/val2017/000000039769.jpg"
    with urllib.request.urlopen(address, timeout=60) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def test_clip_gives_what_transformers_records(cats):
    """Logits of ViT-B/32, from `CLIPModelIntegrationTest` of transformers; the logits are PickScore's formula."""
    name = "openai/clip-vit-base-patch32"
    scorer = open_scorer("pickscore", weights=name, base=name)
    found = [scored(scorer, [cats], f"a photo of a {animal}")[0] for animal in ("cat", "dog")]
    assert found == pytest.approx([24.5701, 19.3049], abs=0.1)


def test_clip_gives_what_torchmetrics_records():
    """Its documentation of `clip_score` has this picture, which is as large as the network wants it."""
    name = "openai/clip-vit-base-patch16"
    pixels = torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(42))
    with torch.no_grad():
        found = open_scorer("pickscore", weights=name, base=name)(pixels[None] / 255, ["a photo of a cat"])
    assert float(found[0]) == pytest.approx(24.4260, abs=0.01)


def test_siglip_gives_what_transformers_records(cats):
    """Logits of the base model, from `SiglipModelIntegrationTest` of transformers."""
    name = "google/siglip-base-patch16-224"
    scorer = open_scorer("siglip", weights=name, base=name)
    found = [scored(scorer, [cats], f"a photo of 2 {animals}")[0] for animals in ("cats", "dogs")]
    logits = torch.logit(torch.tensor(found, dtype=torch.float64))
    assert logits.tolist() == pytest.approx([-0.7567, -10.3354], abs=0.2)


@pytest.mark.parametrize(
    ("kind", "weights", "base"),
    [
        (
            "pickscore",
            "yuvalkirstain/PickScore_v1",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        ),
        ("clipscore", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
    ],
)
def test_clip_scorers_are_those_of_transformers(files, kind, weights, base):
    model = hf.CLIPModel.from_pretrained(weights).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    looking = hf.CLIPImageProcessorPil.from_pretrained(base)
    prompt = f"A photo depicts {PROMPT}" if kind == "clipscore" else PROMPT
    tokens = tokenizer(
        prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        found = model(input_ids=tokens, pixel_values=looking(files, return_tensors="pt").pixel_values)
    cosine = (found.image_embeds * found.text_embeds).sum(-1)
    there = 2.5 * cosine.clamp(min=0) if kind == "clipscore" else model.logit_scale.exp() * cosine
    there = there.detach().tolist()
    spread = max(there) - min(there)
    assert scored(open_scorer(kind), files) == pytest.approx(there, abs=0.03 * spread)


def test_siglip_is_that_of_transformers(files):
    name = "google/siglip-so400m-patch14-384"
    model = hf.SiglipModel.from_pretrained(name).eval()
    tokens = hf.AutoTokenizer.from_pretrained(name)(
        PROMPT, padding="max_length", max_length=64, truncation=True, return_tensors="pt"
    ).input_ids
    looking = hf.SiglipImageProcessorPil.from_pretrained(name)
    with torch.no_grad():
        logits = model(input_ids=tokens, pixel_values=looking(files, return_tensors="pt").pixel_values)
    there = logits.logits_per_image[:, 0]
    found = torch.logit(torch.tensor(scored(open_scorer("siglip"), files), dtype=torch.float64))
    torch.testing.assert_close(found.float(), there, rtol=0, atol=0.2)


@pytest.mark.parametrize("kind", ["hpsv2", "hpsv2.1"])
def test_hps_lies_near_its_published_range(files, kind):
    """Its authors give means over styles and no pictures: 26 to 28 for v2, 25 to 33 for v2.1."""
    found = scored(open_scorer(kind), files)
    assert all(15 < score < 40 for score in found)
    assert max(found) - min(found) > 0.1


MIRROR = "RE-N-Y/mpsv1/model.safetensors"
"""MPS on the hub, by the author of github.com/RE-N-Y/imscore; its authors have it on Google Drive alone."""


@pytest.mark.parametrize("kind", ["mps", "mps.aesthetics", "mps.semantics", "mps.detail", "aesthetic"])
def test_published_weights_fit(files, kind):
    """Of these nobody records scores: every weight has its place, and pictures are told apart."""
    found = scored(open_scorer(kind, weights=None if kind == "aesthetic" else MIRROR), files)
    assert np.isfinite(found).all() and max(found) - min(found) > 0.1
