"""MPS against its layers written out, behind Pillow, from tables of weights and from a module that was saved whole."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from by_hand import mps_cross
from tiny_scorers import PROCESSOR, PROMPTS, clip, smooth_pictures

from unifl.errors import UserError
from unifl.feedback import Feedback, require_gradient
from unifl.feedback.scorers import SCORERS, open_scorer
from unifl.feedback.scorers.cross_tokens import CrossTokens
from unifl.feedback.scorers.mps import CONDITIONS
from unifl.feedback.scorers.pickled import read_module

WIDTH, HEADS, PER_HEAD, DEPTH = 12, 2, 4, 2


def manifest(*, depth, width, heads, per_head, hidden):
    """Names and shapes behind CLIP, from trainer/models/cross_modeling.py of github.com/Kwai-Kolors/MPS."""
    found = {}
    inner = heads * per_head
    for layer in range(depth):
        for part in (0, 1):
            place = f"cross_model.layers.{layer}.{part}.fn"
            found[f"{place}.norm.weight"] = (width,)
            found[f"{place}.norm.bias"] = (width,)  # a buffer of zeros
        place = f"cross_model.layers.{layer}.0.fn"
        found[f"{place}.to_q.weight"] = (inner, width)
        found[f"{place}.to_kv.weight"] = (2 * per_head, width)
        found[f"{place}.to_out.weight"] = (width, inner)
        found[f"{place}.ff.0.weight"] = (2 * hidden, width)
        found[f"{place}.ff.2.weight"] = (width, hidden)
        place = f"cross_model.layers.{layer}.1.fn"
        found[f"{place}.rotary_emb.inv_freq"] = (per_head // 2,)
        found[f"{place}.fused_attn_ff_proj.weight"] = (inner + 2 * per_head + 2 * hidden, width)
        found[f"{place}.attn_out.weight"] = (width, inner)
        found[f"{place}.ff_out.1.weight"] = (width, hidden)
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with CLIP, its model, and the state of the whole of MPS."""
    folder = tmp_path_factory.mktemp("clip")
    model = clip(folder)
    generator = torch.Generator().manual_seed(3)
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    shapes = manifest(depth=DEPTH, width=WIDTH, heads=HEADS, per_head=PER_HEAD, hidden=4 * WIDTH)
    for name, shape in shapes.items():
        value = 0.4 * torch.randn(shape, generator=generator)
        state[name] = torch.zeros(shape) if name.endswith("norm.bias") else value
    return folder, model, state


def opened(published, path, kind="mps", state=None):
    folder, _, own = published
    torch.save(own if state is None else state, path)
    return open_scorer(kind, weights=str(path), base=str(folder))


@pytest.fixture(scope="module")
def scorer(published, tmp_path_factory):
    return opened(published, tmp_path_factory.mktemp("mps") / "MPS.pth")


def one_by_one(published, pictures, prompts, condition):
    """The authors' evaluation: one picture and prompt at a time, through transformers' own CLIP and Pillow."""
    folder, model, state = published
    settings = {key: value for key, value in PROCESSOR.items() if key != "image_processor_type"}
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    scores = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        file = Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        pixels = hf.CLIPImageProcessorPil(**settings)(file, return_tensors="pt").pixel_values
        # without padding masks, as the authors
        read = [
            model.text_model(
                tokenizer(
                    text, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
                ).input_ids
            )
            for text in (prompt, condition)
        ]
        tokens, asked = (model.text_projection(found.last_hidden_state) for found in read)
        sentence = model.text_projection(read[0].pooler_output)
        near = torch.einsum("bid,bjd->bji", tokens, asked).max(1)[0]
        hidden = ~(near / near.max() > 0.3)
        seen = model.visual_projection(model.vision_model(pixels).last_hidden_state)
        met = mps_cross(state, seen, tokens, hidden, depth=DEPTH, heads=HEADS)[:, 0]
        scores.append(model.logit_scale.exp() * torch.cosine_similarity(met, sentence))
    return torch.cat(scores).detach()


@pytest.mark.parametrize("kind", ["mps", "mps.aesthetics", "mps.detail", "mps.semantics"])
def test_scores_are_those_of_the_authors_path_one_by_one(published, tmp_path, kind):
    found = opened(published, tmp_path / "MPS.pth", kind)
    assert isinstance(found, Feedback) and found.card is SCORERS[kind] and found.needs == {"prompt"}
    condition = CONDITIONS[kind.partition(".")[2] or "overall"]
    there = one_by_one(published, smooth_pictures(), PROMPTS, condition)
    spread = float(there.max() - there.min())
    assert spread > 0.05
    torch.testing.assert_close(found(smooth_pictures(), PROMPTS), there, rtol=0, atol=0.03 * spread)


def test_the_condition_decides_which_tokens_count(scorer):
    _, _, asked = scorer.network._read(PROMPTS)
    assert asked.any(-1).all() and not asked.all()


def test_gradients_reach_the_pixels_and_order_does_not_matter(scorer):
    pictures = smooth_pictures()
    require_gradient(scorer, method="ReFL", example=pictures[:1])
    together = scorer(pictures, PROMPTS)
    order = [2, 0, 1]
    turned = scorer(pictures[order], [PROMPTS[row] for row in order])
    torch.testing.assert_close(turned, together[order], rtol=1e-5, atol=1e-5)
    alone = torch.cat([scorer(pictures[row : row + 1], [PROMPTS[row]]) for row in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    same = scorer(pictures, [PROMPTS[0]] * 3)
    torch.testing.assert_close(same[:1], together[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="there are 3 pictures and 1 prompts"):
        scorer(pictures, PROMPTS[:1])


def test_the_overall_condition_is_the_authors():
    assert CONDITIONS["overall"].split(", ")[:3] == ["light", "color", "clarity"]
    assert CONDITIONS["overall"].endswith("number, location, word, things.")
    assert len(CONDITIONS["overall"].split(", ")) == 22


def test_weights_that_are_missing_surplus_or_of_other_shapes(published, tmp_path):
    _, _, state = published

    def changed(new, without=""):
        kept = {name: value for name, value in state.items() if not without or without not in name}
        return opened(published, tmp_path / "MPS.pth", state=kept | new)

    changed({"cross_model.layers.0.1.fn.pos_emb": torch.zeros(3, 4)}, without="inv_freq")  # buffers
    with pytest.raises(UserError, match=r"lacks 1 weights \(layers\.1\.own\.attn_out\.weight\)"):
        changed({}, without="layers.1.1.fn.attn_out")
    with pytest.raises(UserError, match=r"lacks 'layers\.0\.cross\.to_kv\.weight'"):
        changed({}, without="layers.0.0.fn.to_kv")
    with pytest.raises(UserError, match=r"lacks 1 weights \(visual_projection\.weight\)"):
        changed({}, without="visual_projection")
    with pytest.raises(UserError, match=r"holds 1 weights \(layers\.0\.cross\.gate\.weight\)"):
        changed({"cross_model.layers.0.0.fn.gate.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="holds head.weight, which MPS does not have"):
        changed({"head.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"has the shape \(5, 12\)"):
        changed({"cross_model.layers.1.0.fn.to_q.weight": torch.zeros(5, 12)})


def test_a_mirror_in_safetensors_reads_the_same(published, scorer, tmp_path):
    folder, _, state = published
    save_file({f"mps.{k}": v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    mirror = open_scorer("mps", weights=str(tmp_path / "model.safetensors"), base=str(folder))
    pictures = smooth_pictures()
    torch.testing.assert_close(mirror(pictures, PROMPTS), scorer(pictures, PROMPTS))


# --- a module that was saved whole ----------------------------------------------------------------------


def saved_whole(state, path):
    """What torch.save(model) of the authors writes: classes of a package that nobody here has."""
    package = types.ModuleType("trainer_of_somebody")

    class Wrapper(nn.Module):
        def __init__(self, tensors):
            super().__init__()
            tree = {}
            for name, tensor in tensors.items():
                first, _, rest = name.partition(".")
                tree.setdefault(first, {})[rest] = tensor
            for first, inner in tree.items():
                if "" in inner:
                    kind = first in ("bias", "inv_freq") and inner[""].ndim == 1
                    value = inner[""].half()
                    self.register_buffer(first, value) if kind else setattr(self, first, nn.Parameter(value))
                else:
                    self.add_module(first, Wrapper(inner))

    Wrapper.__module__, Wrapper.__qualname__ = package.__name__, "Wrapper"
    package.Wrapper = Wrapper
    sys.modules[package.__name__] = package
    try:
        torch.save(Wrapper(state), path)
    finally:
        del sys.modules[package.__name__]


def test_a_module_that_was_saved_whole_is_read_without_its_classes(published, scorer, tmp_path):
    folder, _, state = published
    saved_whole(state, tmp_path / "MPS_overall_checkpoint.pth")
    assert "trainer_of_somebody" not in sys.modules
    read = read_module(tmp_path / "MPS_overall_checkpoint.pth")
    assert {name: tuple(value.shape) for name, value in read.items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    whole = open_scorer("mps", weights=str(tmp_path / "MPS_overall_checkpoint.pth"), base=str(folder))
    pictures = smooth_pictures()
    expected = scorer(pictures, PROMPTS)
    spread = float(expected.max() - expected.min())
    torch.testing.assert_close(whole(pictures, PROMPTS), expected, rtol=0, atol=0.05 * spread)
    with pytest.raises(UserError, match="cannot be read as weights"):  # only where authors publish so
        open_scorer("hpsv2", weights=str(tmp_path / "MPS_overall_checkpoint.pth"), base=str(folder))


class Hostile:
    """Writes a file when a careless reader meets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_file_is_run(published, tmp_path):
    folder, _, _ = published
    torch.save(Hostile(tmp_path / "run"), tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="holds no module with weights"):
        open_scorer("mps", weights=str(tmp_path / "hostile.pth"), base=str(folder))
    assert not (tmp_path / "run").exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert (tmp_path / "run").exists()  # so it would have been
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "again")))
    with pytest.raises(UserError, match="cannot be read"):
        open_scorer("mps", weights=str(tmp_path / "bare.pth"), base=str(folder))
    assert not (tmp_path / "again").exists()


def test_the_names_and_shapes_of_the_published_size():
    """Cross_model(dim=1024, layer_num=4, heads=16), with the defaults dim_head=64 and ff_mult=4."""
    shapes = manifest(depth=4, width=1024, heads=16, per_head=64, hidden=4096)
    with torch.device("meta"):
        own = CrossTokens(4, 1024, 16, 64, 4096)
    found = {name: tuple(value.shape) for name, value in own.state_dict().items()}
    wanted = {
        name.replace("cross_model.", "").replace(".0.fn.", ".cross.").replace(".1.fn.", ".own."): shape
        for name, shape in shapes.items()
        if "inv_freq" not in name
    }
    assert found == wanted
