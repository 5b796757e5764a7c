"""Scorers against transformers' own model behind its own preprocessing with Pillow."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from email.message import Message
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from tiny_scorers import PROCESSOR, PROMPTS, SIDE, clip, head_state, open_clip_state, smooth_pictures

from unifl.errors import UserError
from unifl.feedback import Feedback, require_gradient
from unifl.feedback.scorers import SCORERS, open_scorer
from unifl.feedback.scorers.files import read_state
from unifl.feedback.scorers.looking import Looking, looking_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, clip(folder)


@pytest.fixture(scope="module")
def pictures():
    return smooth_pictures()


def with_pillow(pictures, model, *, fit="crop", prompts=PROMPTS, prefix="", folder=None):
    """Cosines by the model's own forward, on what its own image processor makes of the files."""
    settings = {key: value for key, value in PROCESSOR.items() if key != "image_processor_type"}
    if fit == "pad":
        settings |= {"do_resize": False, "do_center_crop": False, "do_rescale": False}
        files = [padded(picture) for picture in pictures]
    else:
        files = [
            Image.fromarray((p.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for p in pictures
        ]
    processor = hf.CLIPImageProcessorPil(**settings)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        [prefix + p for p in prompts],
        padding="max_length",
        max_length=77,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        found = model(
            pixel_values=processor(files, return_tensors="pt").pixel_values, input_ids=tokens.input_ids
        )
    return (found.image_embeds * found.text_embeds).sum(-1), found


def padded(picture):
    """The longer side becomes SIDE, black around: what HPSv2's transform does, which scales a tensor of floats.

    Pillow scales floats by a code of its own, without rounding and limits.
    """
    scale = SIDE / max(picture.shape[1:])
    height, width = (round(side * scale) for side in picture.shape[1:])
    found = np.zeros((3, SIDE, SIDE), np.float32)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    for channel, values in zip(found, picture.numpy(), strict=True):
        small = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
        channel[top : top + height, left : left + width] = np.asarray(small)
    return found


def shown_plainly(**settings):
    return Looking(size=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3, **settings)


@pytest.mark.parametrize("rounds", [False, True], ids=["numbers", "bytes"])
def test_pixels_are_those_of_pillow_but_for_a_few_255ths(pictures, rounds):
    shown = shown_plainly(rounds=rounds)(pictures)
    files = [Image.fromarray((p.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for p in pictures]
    expected = [file.resize((SIDE * 64 // 48, SIDE), Image.Resampling.BICUBIC) for file in files]
    left = (expected[0].width - SIDE) // 2
    expected = [file.crop((left, 0, left + SIDE, SIDE)) for file in expected]
    there = torch.stack([torch.from_numpy(np.asarray(file) / 255).permute(2, 0, 1) for file in expected])
    gap = (shown - there).abs() * 255
    assert gap.max() < 1.01 and gap.mean() < 0.4


def test_padded_pixels_are_scaled_numbers_without_limits(pictures):
    """HPS v2 reads bytes as numbers before it scales, so that nothing holds what overshoots at edges."""
    edges = (pictures > 0.5).float()
    shown = shown_plainly(fit="pad")(edges)
    assert shown.min() < -0.05 and shown.max() > 1.05
    there = torch.from_numpy(np.stack([padded(picture) for picture in edges]))
    torch.testing.assert_close(shown, there, rtol=0, atol=1e-5)
    # torchvision before 0.17 did not smooth tensors: every third pixel of this is looked at, and no other
    stripes = torch.zeros(1, 3, 96, 96)
    stripes[..., ::3] = 1
    rough, smooth = (shown_plainly(fit="pad", antialias=smooths)(stripes) for smooths in (False, True))
    assert rough.abs().max() < 0.1 and (smooth[..., 2:-2] - 1 / 3).abs().max() < 0.1


def test_the_middle_of_odd_pixels_is_that_of_each_original(checkpoint, pictures, tmp_path):
    """transformers rounds the half down and torchvision to the even neighbour: 1 and 2 of the three spare ones."""
    folder, _ = checkpoint
    torch.save(head_state(), tmp_path / "head.pth")
    wide = pictures[..., :SIDE, : SIDE + 3]
    for kind, left in {"pickscore": 1, "clipscore": 2, "aesthetic": 2}.items():
        weights = tmp_path / "head.pth" if kind == "aesthetic" else folder
        scorer = open_scorer(kind, weights=str(weights), base=str(folder))
        middle = wide[..., left : left + SIDE]
        torch.testing.assert_close(scorer(wide, PROMPTS), scorer(middle, PROMPTS), msg=kind)
        assert not torch.equal(scorer(wide, PROMPTS), scorer(wide[..., 3 - left :][..., :SIDE], PROMPTS))
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    file = Image.fromarray((wide[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    seen = hf.CLIPImageProcessorPil(**settings, do_normalize=False)(file, return_tensors="pt").pixel_values
    torch.testing.assert_close(shown_plainly()(wide[:1]), seen)
    five = pictures[..., : SIDE + 5, :SIDE]  # half of five is 2 in both
    assert torch.equal(shown_plainly(half="even")(five), five[..., 2 : 2 + SIDE, :])


@pytest.mark.parametrize(
    ("kind", "fit", "prefix", "expected"),
    [
        ("clipscore", "crop", "A photo depicts ", lambda cos, scale: 2.5 * cos.clamp(min=0)),
        ("pickscore", "crop", "", lambda cos, scale: scale.exp() * cos),
        ("hpsv2", "pad", "", lambda cos, scale: 100 * cos),
        ("hpsv2.1", "pad", "", lambda cos, scale: 100 * cos),
    ],
)
def test_scores_are_those_of_the_model_behind_pillow(
    checkpoint, pictures, tmp_path, kind, fit, prefix, expected
):
    folder, model = checkpoint
    weights = folder
    if kind.startswith("hps"):
        weights = tmp_path / "HPS.pt"
        torch.save({"state_dict": open_clip_state(model), "epoch": 3}, weights)
    scorer = open_scorer(kind, weights=str(weights), base=str(folder))
    assert isinstance(scorer, Feedback) and scorer.card is SCORERS[kind] and scorer.needs == {"prompt"}
    cosine, _ = with_pillow(pictures, model, fit=fit, prefix=prefix, folder=folder)
    there = expected(cosine, model.logit_scale).detach()
    ours = scorer(pictures, PROMPTS)
    spread = float(there.max() - there.min())
    assert spread > 0.01 * float(there.abs().max())
    if fit == "pad":
        torch.testing.assert_close(ours, there, rtol=0, atol=1e-4 * spread)
        return
    # pixels differ by less than a 255th on average
    torch.testing.assert_close(ours, there, rtol=0, atol=0.03 * spread)
    scorer.network.looking = Looking(**{**vars(scorer.network.looking), "rounds": True})
    torch.testing.assert_close(scorer(pictures, PROMPTS), there, rtol=0, atol=0.03 * spread)


def test_gradients_reach_the_pixels_and_order_does_not_matter(checkpoint, pictures):
    folder, _ = checkpoint
    scorer = open_scorer("pickscore", weights=str(folder), base=str(folder))
    require_gradient(scorer, method="ReFL", example=pictures[:1])
    together = scorer(pictures, PROMPTS)
    order = [2, 0, 1]
    turned = scorer(pictures[order], [PROMPTS[row] for row in order])
    torch.testing.assert_close(turned, together[order], rtol=1e-5, atol=1e-5)
    alone = torch.cat([scorer(pictures[row : row + 1], [PROMPTS[row]]) for row in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    swapped = scorer(pictures, PROMPTS[::-1])
    assert (swapped - together).abs().max() > 1e-3
    assert not any(parameter.requires_grad for parameter in scorer.network.parameters())


def test_prompts_are_tidied_up_where_the_original_does(checkpoint, pictures, tmp_path):
    """`basic_clean` and `whitespace_clean` of open_clip and OpenAI's CLIP; PickScore is read by transformers."""
    folder, model = checkpoint
    torch.save(open_clip_state(model), tmp_path / "HPS.pt")
    untidy = ["a dog &amp;amp; a cat", " it\u2019s  a\n\u201cdog\u201d &quot;", "a&nbsp;dog &lt;"]
    tidy = ["a dog & a cat", 'it\'s a "dog" "', "a dog <"]
    for kind in ("clipscore", "hpsv2", "hpsv2.1", "pickscore"):
        weights = tmp_path / "HPS.pt" if kind.startswith("hps") else folder
        scorer = open_scorer(kind, weights=str(weights), base=str(folder))
        gap = (scorer(pictures, untidy) - scorer(pictures, tidy)).abs()
        assert (gap > 0).all() if kind == "pickscore" else (gap == 0).all(), kind


def test_the_aesthetic_head_reads_the_embedding_alone(checkpoint, pictures, tmp_path):
    folder, model = checkpoint
    state = head_state()
    torch.save(state, tmp_path / "head.pth")
    scorer = open_scorer("aesthetic", weights=str(tmp_path / "head.pth"), base=str(folder))
    assert scorer.needs == frozenset()
    _, found = with_pillow(pictures, model, folder=folder)
    expected = found.image_embeds
    for number in (0, 2, 4, 6, 7):
        expected = expected @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    spread = float((expected.max() - expected.min()).detach())
    torch.testing.assert_close(scorer(pictures, []), expected[:, 0], rtol=0, atol=0.03 * spread)
    del state["layers.4.bias"]
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(UserError, match="no weights of an aesthetic head"):
        open_scorer("aesthetic", weights=str(tmp_path / "head.pth"), base=str(folder))
    torch.save(head_state(width=13), tmp_path / "head.pth")
    with pytest.raises(UserError, match="reads 13 numbers and 12 come from the tower"):
        open_scorer("aesthetic", weights=str(tmp_path / "head.pth"), base=str(folder))


def test_siglip_gives_a_probability(pictures, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip(tmp_path / "clip")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "clip")
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 16}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.0), model.logit_bias.fill_(-0.5)
    model.save_pretrained(tmp_path / "siglip")
    tokenizer.save_pretrained(tmp_path / "siglip")
    settings = {
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "siglip" / "preprocessor_config.json").write_text(json.dumps(settings))
    scorer = open_scorer("siglip", weights=str(tmp_path / "siglip"))
    squashed = torch.nn.functional.interpolate(pictures, size=(32, 32), mode="bicubic", antialias=True).clamp(
        0, 1
    )
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=(squashed - 0.5) / 0.5, input_ids=tokens.input_ids).logits_per_image
    torch.testing.assert_close(scorer(pictures, PROMPTS), torch.sigmoid(logits.diag()), rtol=1e-4, atol=1e-5)
    assert scorer.range == (0.0, 1.0)


def test_weights_that_are_missing_or_surplus_are_an_error(checkpoint, tmp_path):
    folder, model = checkpoint
    state = open_clip_state(model)
    base = str(folder)

    def opened(changed, kind="hpsv2"):
        torch.save(changed, tmp_path / "HPS.pt")
        return open_scorer(kind, weights=str(tmp_path / "HPS.pt"), base=base)

    with pytest.raises(UserError, match="lacks 2 weights"):
        opened(
            {
                key: value
                for key, value in state.items()
                if "resblocks.1.mlp.c_fc" not in key or "visual" in key
            }
        )
    with pytest.raises(UserError, match=r"the weight visual\.head belongs to no CLIP"):
        opened(state | {"visual.head": torch.zeros(1)})
    with pytest.raises(UserError, match="holds 16 weights"):
        opened(
            state
            | {
                k.replace("blocks.1", "blocks.2"): v
                for k, v in state.items()
                if k.startswith("transformer.resblocks.1")
            }
        )
    with pytest.raises(UserError, match="has the shape"):
        opened(state | {"visual.proj": torch.zeros(16, 13)})
    opened(state | {"attn_mask": torch.zeros(77, 77)})  # a buffer
    with pytest.raises(UserError, match="holds no table of tensors"):
        opened({"state_dict": [1, 2]})
    (tmp_path / "HPS.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        open_scorer("hpsv2", weights=str(tmp_path / "HPS.pt"), base=base)
    own = model.state_dict().items()
    cut = {key: value.contiguous() for key, value in own if "visual_projection" not in key}
    clip(tmp_path / "cut")
    save_file(
        {key: value.contiguous() for key, value in cut.items()},
        tmp_path / "cut" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"lacks 1 weights \(visual_projection.weight\)"):
        open_scorer("clipscore", weights=str(tmp_path / "cut"))


def test_names_and_places_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no scorer 'pickscor'; did you mean 'pickscore'"):
        open_scorer("pickscor")
    with pytest.raises(UserError, match="sharpness has no weights"):
        open_scorer("sharpness", weights="x")
    with pytest.raises(UserError, match="there is no checkpoint at"):
        open_scorer("clipscore", weights=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="there are no weights at nothing.pt"):
        open_scorer("hpsv2", weights="nothing.pt")
    with pytest.raises(
        UserError, match="link to Google Drive alone, in the README of github.com/Kwai-Kolors/MPS"
    ):
        open_scorer("mps.detail")


class Answer(io.BytesIO):
    """Of a server, without headers."""

    def info(self):
        return Message()


def test_a_file_at_an_address_is_known_by_its_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"download https://raw.+improved-aesthetic-predictor/\w{40}/sac%2Blogos"
    ):
        open_scorer("aesthetic")  # tests are offline
    torch.save(head_state(), tmp_path / "head.pth")
    sent = (tmp_path / "head.pth").read_bytes()
    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        torch.hub, "urlopen", lambda request: asked.append(request.full_url) or Answer(sent), raising=True
    )
    address = "https://example.org/a%2Bb.pth"
    with pytest.raises(UserError, match=r"cannot be fetched \(invalid hash value"):
        read_state(f"{address}#sha256={hashlib.sha256(b'another').hexdigest()}")
    with pytest.raises(UserError, match="may hold anything; download it"):
        read_state(f"{address}#sha256=21dd590f")
    for _ in range(2):  # the second time it is there
        found = read_state(f"{address}#sha256={hashlib.sha256(sent).hexdigest()}")
        assert all(torch.equal(found[key], value) for key, value in head_state().items())
    assert asked == [address] * 2
    assert [path.name for path in tmp_path.rglob("*.pth") if path.parent != tmp_path] == ["a+b.pth"]


def test_the_names_and_shapes_of_clip_h_are_those_of_its_config():
    """ViT-H-14 of open_clip, from its model config, against CLIPModel with the config of laion's repository."""
    from unifl.feedback.scorers.open_clip import from_open_clip

    with torch.device("meta"):
        text = {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
        vision = {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
        }
        model = hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**text, "vocab_size": 49408},
                vision_config={**vision, "patch_size": 14, "image_size": 224},
                projection_dim=1024,
            )
        )
        state = {
            "logit_scale": torch.zeros(()),
            "visual.class_embedding": torch.zeros(1280),
            "visual.positional_embedding": torch.zeros(257, 1280),
            "visual.conv1.weight": torch.zeros(1280, 3, 14, 14),
            "visual.proj": torch.zeros(1280, 1024),
            "positional_embedding": torch.zeros(77, 1024),
            "token_embedding.weight": torch.zeros(49408, 1024),
            "text_projection": torch.zeros(1024, 1024),
        }
        for norm, width in (("visual.ln_pre", 1280), ("visual.ln_post", 1280), ("ln_final", 1024)):
            state |= {f"{norm}.weight": torch.zeros(width), f"{norm}.bias": torch.zeros(width)}
        for prefix, width, depth in (("visual.", 1280, 32), ("", 1024, 24)):
            for layer in range(depth):
                place = f"{prefix}transformer.resblocks.{layer}"
                for name, shape in {
                    "attn.in_proj_weight": (3 * width, width),
                    "attn.in_proj_bias": (3 * width,),
                    "attn.out_proj.weight": (width, width),
                    "attn.out_proj.bias": (width,),
                    "ln_1.weight": (width,),
                    "ln_1.bias": (width,),
                    "ln_2.weight": (width,),
                    "ln_2.bias": (width,),
                    "mlp.c_fc.weight": (4 * width, width),
                    "mlp.c_fc.bias": (4 * width,),
                    "mlp.c_proj.weight": (width, 4 * width),
                    "mlp.c_proj.bias": (width,),
                }.items():
                    state[f"{place}.{name}"] = torch.zeros(shape)
        found = from_open_clip(state)
    own = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == own
    assert sum(tensor.numel() for tensor in found.values()) == 986_109_441  # as open_clip counts them


@pytest.mark.parametrize("kind", ["colourfulness", "sharpness", "jpeg_small", "jpeg_large"])
def test_readings_without_weights(kind, pictures):
    scorer = open_scorer(kind)
    assert isinstance(scorer, Feedback) and scorer.needs == frozenset()
    grey = pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    blurred = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(pictures, (2, 2, 2, 2), mode="replicate"), 5, 1
    )
    vivid, dull, smooth = (scorer(images, [])[0] for images in (pictures, grey, blurred))
    if kind == "colourfulness":
        array = (pictures[0] * 255).double().numpy()
        rg, yb = array[0] - array[1], (array[0] + array[1]) / 2 - array[2]
        expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert float(vivid) == pytest.approx(expected, rel=1e-4) and float(dull) < 1e-3
    elif kind.startswith("jpeg"):
        assert abs(vivid) > abs(smooth)
        file = io.BytesIO()
        pixels = (pictures[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=95)  # as DDPO's rewards.py, in 1,000 bytes
        sign = -1 if kind == "jpeg_small" else 1
        assert float(vivid) == pytest.approx(sign * len(file.getvalue()) / 1000)
    else:
        assert vivid > smooth > 0
    if scorer.differentiable:
        require_gradient(scorer, method="ReFL", example=pictures[:1])
        leaf = grey.clone().requires_grad_()
        scorer(leaf, []).sum().backward()
        assert leaf.grad.isfinite().all()


def test_every_scorer_has_a_card():
    for kind, card in SCORERS.items():
        assert card.title and card.paper and card.scale and card.sees and card.biases, kind
        assert bool(card.weights) == bool(card.licence), kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, "only 1/255 is understood"),
        ({"crop_size": {"height": 32, "width": 24}}, "which is no square"),
        (
            {"size": {"shortest_edge": 40}},
            "scales the shorter side to 40 and cuts out 32; only a crop of",
        ),
        ({"size": 40}, "scales the shorter side to 40 and cuts out 32"),
        ({"do_center_crop": False}, "scales the shorter side to 32 and cuts out nothing; set do_center_crop"),
    ],
)
def test_an_image_processor_that_shows_something_else_is_refused(changes, message):
    """Otherwise scores would be those of other pictures, without a word."""
    with pytest.raises(UserError, match=message):
        looking_of(PROCESSOR | changes, model="mine")
    assert looking_of(PROCESSOR, model="mine") == Looking(size=SIDE)
    assert looking_of(PROCESSOR | {"size": {"shortest_edge": 40}}, model="mine", fit="squash").fit == "squash"
    square = {"do_center_crop": False, "size": {"height": 24, "width": 24}}
    assert looking_of(PROCESSOR | square, model="mine") == Looking(size=24, fit="squash")
