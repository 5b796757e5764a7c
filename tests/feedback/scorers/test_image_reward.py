"""ImageReward against its layers written out, behind Pillow, and against the manifest of its public code."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from by_hand import image_reward
from tiny_scorers import PROMPTS, smooth_pictures

from unifl.errors import UserError
from unifl.feedback import Feedback, require_gradient
from unifl.feedback.scorers import SCORERS, blip, open_scorer

DEPTH, WIDTH, SIDE, WORDS = 2, 128, 32, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def manifest(*, depth, vision, text, hidden, side, words, places, head):
    """Names and shapes of ImageReward.pt, from ImageReward/models/BLIP/{vit,med}.py and ImageReward.py of its
    repository: `visual_encoder` of `BLIP_Pretrain(vit="large")`, `BertModel` with cross attention, the MLP."""
    found = {}

    def put(name, *shape):
        found[f"{name}.weight"] = shape
        found[f"{name}.bias"] = (shape[0],)

    see = "blip.visual_encoder"
    found[f"{see}.cls_token"] = (1, 1, vision)
    found[f"{see}.pos_embed"] = (1, (side // 16) ** 2 + 1, vision)
    put(f"{see}.patch_embed.proj", vision, 3, 16, 16)
    for layer in range(depth[0]):
        place = f"{see}.blocks.{layer}"
        put(f"{place}.norm1", vision)
        put(f"{place}.norm2", vision)
        put(f"{place}.attn.qkv", 3 * vision, vision)
        put(f"{place}.attn.proj", vision, vision)
        put(f"{place}.mlp.fc1", 4 * vision, vision)
        put(f"{place}.mlp.fc2", vision, 4 * vision)
    put(f"{see}.norm", vision)
    read = "blip.text_encoder"
    found[f"{read}.embeddings.word_embeddings.weight"] = (words, text)
    found[f"{read}.embeddings.position_embeddings.weight"] = (places, text)
    put(f"{read}.embeddings.LayerNorm", text)
    for layer in range(depth[1]):
        place = f"{read}.encoder.layer.{layer}"
        for kind, width in (("attention", text), ("crossattention", vision)):
            put(f"{place}.{kind}.self.query", text, text)
            put(f"{place}.{kind}.self.key", text, width)
            put(f"{place}.{kind}.self.value", text, width)
            put(f"{place}.{kind}.output.dense", text, text)
            put(f"{place}.{kind}.output.LayerNorm", text)
        put(f"{place}.intermediate.dense", hidden, text)
        put(f"{place}.output.dense", text, hidden)
        put(f"{place}.output.LayerNorm", text)
    put("blip.vision_proj", 256, vision)
    put("blip.text_proj", 256, text)
    for number, (into, out) in zip((0, 2, 4, 6, 7), zip([text, *head], [*head, 1], strict=True), strict=True):
        put(f"mlp.layers.{number}", out, into)
    return found


TINY = {
    "depth": (DEPTH, DEPTH),
    "vision": WIDTH,
    "text": WIDTH,
    "hidden": 64,
    "side": SIDE,
    "words": 64,
    "places": 40,
    "head": [16, 8, 4, 2],
}


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in manifest(**TINY).items():
        found[name] = (0.5 if "mlp.layers" in name else 0.12) * torch.randn(shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            found[name] += 1
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tokenizer of BERT's kind over words of the prompts."""
    folder = tmp_path_factory.mktemp("bert")
    words = [*WORDS, *sorted({word for prompt in PROMPTS for word in prompt.split()})]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    hf.BertTokenizerFast(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(state, base, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ImageReward.pt"
    torch.save(state | {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}, path)
    return open_scorer("imagereward", weights=str(path), base=str(base))


def shown_by_pillow(pictures):
    """Resize(bicubic), CenterCrop, ToTensor and Normalize of the original, on files."""
    files = [Image.fromarray((p.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for p in pictures]
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
    return hf.CLIPImageProcessorPil(**settings)(files, return_tensors="pt").pixel_values


def test_scores_are_those_of_its_layers_behind_pillow(scorer, state, base):
    assert (
        isinstance(scorer, Feedback) and scorer.card is SCORERS["imagereward"] and scorer.needs == {"prompt"}
    )
    pictures = smooth_pictures()
    tokens = hf.AutoTokenizer.from_pretrained(base)(
        PROMPTS, padding="max_length", max_length=35, truncation=True, return_tensors="pt"
    )
    there = image_reward(
        state,
        shown_by_pillow(pictures),
        tokens.input_ids,
        tokens.attention_mask.bool(),
        depth=DEPTH,
        heads=WIDTH // 64,
    )
    spread = float(there.max() - there.min())
    assert spread > 0.1
    torch.testing.assert_close(scorer(pictures, PROMPTS), there, rtol=0, atol=0.03 * spread)
    # on equal pixels nothing is left but the order of sums
    exact = image_reward(
        state,
        scorer.network.looking(pictures),
        tokens.input_ids,
        tokens.attention_mask.bool(),
        depth=DEPTH,
        heads=WIDTH // 64,
    )
    torch.testing.assert_close(scorer(pictures, PROMPTS), exact, rtol=1e-4, atol=1e-4)


def test_the_middle_of_odd_pixels_is_torchvisions(scorer):
    """Of three spare columns the original cuts off two on the left: half of three, rounded to the even neighbour."""
    wide = smooth_pictures()[..., :SIDE, : SIDE + 3]
    torch.testing.assert_close(scorer(wide, PROMPTS), scorer(wide[..., 2 : 2 + SIDE], PROMPTS))


def test_the_towers_are_those_of_transformers_own_retrieval_model(scorer):
    """`BlipForImageTextRetrieval`, in which transformers joins both towers, asked for its question embedding."""
    network = scorer.network
    config = hf.BlipConfig(
        text_config=network.text.config.to_dict(), vision_config=network.vision.config.to_dict()
    )
    model = hf.BlipForImageTextRetrieval(config).eval()
    model.vision_model.load_state_dict(network.vision.state_dict())
    model.text_encoder.load_state_dict(network.text.state_dict())
    tokens = network.tokenizer(
        PROMPTS, padding="max_length", max_length=35, truncation=True, return_tensors="pt"
    )
    pictures = smooth_pictures()
    with torch.no_grad():
        found = model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=network.looking(pictures),
        )
        expected = network.head(found.question_embeds[:, 0])[:, 0]
    torch.testing.assert_close(
        scorer(pictures, PROMPTS), (expected - 0.16717362830052426) / 1.0333394966054072, rtol=1e-4, atol=1e-5
    )


def test_gradients_reach_the_pixels_and_order_does_not_matter(scorer):
    pictures = smooth_pictures()
    require_gradient(scorer, method="ReFL", example=pictures[:1])
    together = scorer(pictures, PROMPTS)
    order = [2, 0, 1]
    turned = scorer(pictures[order], [PROMPTS[row] for row in order])
    torch.testing.assert_close(turned, together[order], rtol=1e-5, atol=1e-5)
    alone = torch.cat([scorer(pictures[row : row + 1], [PROMPTS[row]]) for row in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert (scorer(pictures, PROMPTS[::-1]) - together)[[0, 2]].abs().min() > 1e-3
    assert not any(parameter.requires_grad for parameter in scorer.network.parameters())


def test_words_beyond_the_35th_token_are_not_read(scorer):
    pictures = smooth_pictures()[:1]
    start = " ".join(["red", "circle"] * 17)  # 34 words after [CLS]: the last gives way to [SEP]
    torch.testing.assert_close(scorer(pictures, [f"{start} blue"]), scorer(pictures, [f"{start} dog dog"]))
    assert (scorer(pictures, ["red blue"]) - scorer(pictures, ["red dog"])).abs() > 1e-4


def test_weights_that_are_missing_surplus_or_of_other_shapes(state, base, tmp_path):
    def opened(changed):
        torch.save(changed, tmp_path / "ImageReward.pt")
        return open_scorer("imagereward", weights=str(tmp_path / "ImageReward.pt"), base=str(base))

    def without(part):
        return {name: value for name, value in state.items() if part not in name}

    opened(without("_proj."))  # the score does not ask these
    with pytest.raises(UserError, match=r"lacks 1 weights \(encoder.layers.1.mlp.fc1.bias\)"):
        opened(without("blocks.1.mlp.fc1.bias"))
    with pytest.raises(UserError, match="lacks 2 weights"):
        opened(without("layer.0.crossattention.self.key"))
    with pytest.raises(UserError, match="no weights of ImageReward's head"):
        opened(without("mlp.layers.4.bias"))
    with pytest.raises(UserError, match=r"there is no weight embeddings\.position_embedding,"):
        opened(without("pos_embed"))
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.gate\.weight belongs to no vision tower"):
        opened(state | {"blip.visual_encoder.blocks.0.attn.gate.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"holds 1 weights \(encoder\.layer\.0\.adapter\.weight\)"):
        opened(state | {"blip.text_encoder.encoder.layer.0.adapter.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"holds clip\.logit_scale, which ImageReward does not have"):
        opened(state | {"clip.logit_scale": torch.zeros(())})
    with pytest.raises(UserError, match=r"has the shape \(7, 128\)"):
        opened(state | {"blip.text_encoder.encoder.layer.1.attention.self.key.weight": torch.zeros(7, WIDTH)})
    vocabulary = state["blip.text_encoder.embeddings.word_embeddings.weight"]
    with pytest.raises(UserError, match="give bert-base-uncased as `base`"):
        opened(state | {"blip.text_encoder.embeddings.word_embeddings.weight": vocabulary[:4]})


def test_the_names_and_shapes_of_the_published_size_are_those_of_transformers():
    """ViT-L/16 at 224 px and the BERT of med_config.json: 30,524 words, 12 layers of 768 (intermediate 3,072)."""
    shapes = manifest(
        depth=(24, 12),
        vision=1024,
        text=768,
        hidden=3072,
        side=224,
        words=30524,
        places=512,
        head=[1024, 128, 64, 16],
    )
    with torch.device("meta"):
        full = {name: torch.zeros(shape) for name, shape in shapes.items()}
        vision = blip.vision_state(
            {
                name.removeprefix("blip.visual_encoder."): value
                for name, value in full.items()
                if name.startswith("blip.visual")
            }
        )
        text = {
            name.removeprefix("blip.text_encoder."): value
            for name, value in full.items()
            if name.startswith("blip.text_encoder")
        }
        seen = blip.vision_config(vision)
        read = blip.text_config(text, vision_width=seen.hidden_size)
        towers = hf.BlipVisionModel(seen), hf.BlipTextModel(read, add_pooling_layer=False)
    assert (seen.num_attention_heads, seen.image_size, read.num_attention_heads) == (16, 224, 12)
    for tower, state in zip(towers, (vision, text), strict=True):
        own = {name: tuple(tensor.shape) for name, tensor in tower.named_parameters()}
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == own


def test_prompts_that_no_scorer_can_use(scorer):
    pictures = smooth_pictures()
    with pytest.raises(UserError, match="there are 3 pictures and 2 prompts"):
        scorer(pictures, PROMPTS[:2])
    with pytest.raises(UserError, match=r"prompt 1 has 3,000,000 characters \('red red"):
        scorer(pictures, [PROMPTS[0], "red " * 750_000, PROMPTS[2]])
