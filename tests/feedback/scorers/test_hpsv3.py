"""HPSv3 against transformers' own Qwen2-VL with the head written out, in the layout of the published file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from tiny_scorers import PROMPTS
from tiny_vlm import qwen2_vl

from unifl.errors import UserError
from unifl.feedback.scorers import hpsv3, open_scorer

QUESTION = "How good is it for {prompt}? Rating: <|Reward|>\nEND\n"
TINY_PIXELS = 4 * 28 * 28


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Qwen2-VL before its words got one more."""
    folder = tmp_path_factory.mktemp("base")
    return (folder, *qwen2_vl(folder))


@pytest.fixture(scope="module")
def full(base, tmp_path_factory):
    """Qwen2-VL with the word <|Reward|>, with weights of its own."""
    return qwen2_vl(tmp_path_factory.mktemp("full"), seed=1, extra=["<|Reward|>"])[0]


@pytest.fixture(scope="module")
def published(full):
    """By the names that transformers 4.45 gave, with which HPSv3 was saved, and the head of its ranknet."""
    found = {}
    for name, value in full.state_dict().items():
        old = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        found[old] = value.to(torch.float32).contiguous()
    generator = torch.Generator().manual_seed(5)
    for number, into, out in ((0, 32, 24), (3, 24, 16), (5, 16, 2)):
        found[f"rm_head.{number}.weight"] = 0.5 * torch.randn(out, into, generator=generator)
        found[f"rm_head.{number}.bias"] = 0.5 * torch.randn(out, generator=generator)
    return found


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(hpsv3, "PIXELS", TINY_PIXELS)


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(1)
    return [
        generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((56, 84), (28, 28), (112, 56))
    ]


def opened(state, base, path):
    save_file(state, path / "HPSv3.safetensors")
    return hpsv3.load_hpsv3(
        str(path / "HPSv3.safetensors"), str(base[0]), None, device="cpu", question=QUESTION
    )


def by_hand(full, base, state, picture, prompt):
    """The authors' forward for one picture: positions count tokens, the head reads the reward token."""
    words, looking = base[2], base[3]
    words = hf.AutoTokenizer.from_pretrained(base[0])
    words.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    seen = looking(
        images=[Image.fromarray(picture)],
        return_tensors="pt",
        min_pixels=TINY_PIXELS,
        max_pixels=TINY_PIXELS,
    )
    content = [{"type": "image"}, {"type": "text", "text": QUESTION.replace("{prompt}", prompt)}]
    text = words.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    pieces = int(seen["image_grid_thw"].prod()) // 4
    tokens = words(text.replace("<|image_pad|>", "<|image_pad|>" * pieces), return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = full(
            input_ids=tokens,
            position_ids=torch.arange(tokens.shape[1]).expand(3, 1, -1),
            mm_token_type_ids=torch.zeros_like(tokens),
            output_hidden_states=True,
            **seen,
        ).hidden_states[-1]
    x = hidden[0, tokens[0].tolist().index(words.convert_tokens_to_ids("<|Reward|>"))]
    for number in (0, 3, 5):
        x = F.linear(x, state[f"rm_head.{number}.weight"], state[f"rm_head.{number}.bias"])
        x = x if number == 5 else F.relu(x)
    return x


def test_scores_are_those_of_the_authors_forward(small, base, full, published, pictures, tmp_path):
    judge = opened(published, base, tmp_path)
    there = torch.stack(
        [by_hand(full, base, published, *pair) for pair in zip(pictures, PROMPTS, strict=True)]
    )
    assert (there[:, 0].max() - there[:, 0].min()) > 0.05
    torch.testing.assert_close(judge.distribution(pictures, PROMPTS), there, rtol=1e-3, atol=1e-4)
    assert judge(pictures[::-1], PROMPTS[::-1]) == pytest.approx(there[:, 0].flip(0).tolist(), rel=1e-3)


def test_weights_that_are_missing_surplus_or_of_other_shapes(small, base, published, tmp_path):
    def changed(new, without="nothing"):
        kept = {name: value for name, value in published.items() if without not in name}
        return opened(kept | new, base, tmp_path)

    changed({}, without="lm_head")  # it does not write
    with pytest.raises(UserError, match=r"lacks 3 weights \(language_model\.layers\.1\.mlp\.down_proj"):
        changed({}, without="model.layers.1.mlp")
    with pytest.raises(UserError, match="lacks 12 weights"):
        changed({}, without="visual.blocks.0")
    with pytest.raises(UserError, match="lacks weights of the reward head"):
        changed({}, without="rm_head.3.weight")
    with pytest.raises(UserError, match=r"lacks 1 weights \(3\.bias\)"):
        changed({}, without="rm_head.3.bias")
    with pytest.raises(UserError, match="holds head.weight, which HPSv3 does not have"):
        changed({"head.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="holds 1 weights"):
        changed({"model.layers.2.mlp.up_proj.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="holds no weights of Qwen2-VL"):
        changed({}, without="embed_tokens")
    with pytest.raises(UserError, match=r"does not fit the config of"):
        changed({"model.norm.weight": torch.zeros(7)})
    with pytest.raises(UserError, match=r"words with <\|Reward\|>"):
        changed({"model.embed_tokens.weight": published["model.embed_tokens.weight"][:-3].clone()})


def test_the_names_of_the_published_size_are_those_of_transformers():
    """Qwen2-VL-7B (28 layers of 3,584, 28 heads and 4 for keys, 18,944 inside; vision of 32 layers of 1,280), by the
    names of transformers 4.45, and the ranknet head of hpsv3/model/qwen2vl_trainer.py."""
    shapes = {"model.embed_tokens.weight": (151658, 3584), "model.norm.weight": (3584,)}
    for layer in range(28):
        place = f"model.layers.{layer}"
        for name, out in (("q", 3584), ("k", 512), ("v", 512)):
            shapes[f"{place}.self_attn.{name}_proj.weight"] = (out, 3584)
            shapes[f"{place}.self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{place}.self_attn.o_proj.weight"] = (3584, 3584)
        for name in ("gate", "up"):
            shapes[f"{place}.mlp.{name}_proj.weight"] = (18944, 3584)
        shapes[f"{place}.mlp.down_proj.weight"] = (3584, 18944)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{place}.{name}.weight"] = (3584,)
    shapes["visual.patch_embed.proj.weight"] = (1280, 3, 2, 14, 14)
    for layer in range(32):
        place = f"visual.blocks.{layer}"
        for name, shape in {
            "norm1": (1280,),
            "norm2": (1280,),
            "attn.qkv": (3840, 1280),
            "attn.proj": (1280, 1280),
            "mlp.fc1": (5120, 1280),
            "mlp.fc2": (1280, 5120),
        }.items():
            shapes[f"{place}.{name}.weight"] = shape
            shapes[f"{place}.{name}.bias"] = shape[:1]
    for name, shape in {"ln_q": (1280,), "mlp.0": (5120, 5120), "mlp.2": (3584, 5120)}.items():
        shapes[f"visual.merger.{name}.weight"] = shape
        shapes[f"visual.merger.{name}.bias"] = shape[:1]
    config = hf.Qwen2VLConfig(
        text_config={
            "vocab_size": 151658,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
    )
    with torch.device("meta"):
        model = hf.Qwen2VLModel(config)
        own, _ = hpsv3._parted({name: torch.zeros(shape) for name, shape in shapes.items()}, "HPSv3")
    assert {name: tuple(value.shape) for name, value in own.items()} == {
        name: tuple(value.shape) for name, value in model.named_parameters()
    }


def test_the_instruction_is_asked_for(tmp_path):
    with pytest.raises(UserError, match="give the file as `question`"):
        open_scorer("hpsv3")
    (tmp_path / "question.txt").write_text("How good is {prompt}?")
    with pytest.raises(UserError, match=r"lacks <\|Reward\|>; write it where it belongs"):
        open_scorer("hpsv3", question=str(tmp_path / "question.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        open_scorer("hpsv3", question=str(tmp_path / "nothing.txt"))
    with pytest.raises(
        UserError, match=r"hpsv3 has no setting 'asks'; its arguments are weights, .* and timeout"
    ):
        open_scorer("hpsv3", asks="rates")
