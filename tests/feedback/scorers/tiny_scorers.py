"""Tiny random scorers in the layouts in which the real ones are published."""

from __future__ import annotations

import json

import torch
import transformers as hf

from unifl.testing import tiny_pipeline

SIDE, WIDTH, DEPTH, TOKENS = 32, 16, 2, 77
PROMPTS = ["a red circle", "a blue square on the left", "a small dog"]
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def smooth_pictures():
    """Smooth pictures of 48 x 64 pixels, in steps of a 255th."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(3, 3, 6, 8, generator=generator)
    images = torch.nn.functional.interpolate(small, size=(48, 64), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def spread(model, seed=5):
    """Larger weights: scores of random ones hardly differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            elif "logit" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def clip(folder, *, processor=PROCESSOR):
    """CLIP as transformers saves it, with tokenizer and image processor."""
    tokenizer = tiny_pipeline("sd15").tokenizer
    torch.manual_seed(0)  # of what `spread` adds to
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
    }
    text = {
        **sizes,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**sizes, "image_size": SIDE, "patch_size": 8}
    model = spread(hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def open_clip_state(model):
    """The same weights under open_clip's names, written out by hand."""
    own, found = model.state_dict(), {}
    found["logit_scale"] = own["logit_scale"]
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for layer in range(DEPTH):
            there, here = f"{prefix}transformer.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for end in ("weight", "bias"):
                parts = [own[f"{here}.self_attn.{part}_proj.{end}"] for part in "qkv"]
                found[f"{there}.attn.in_proj_{end}"] = torch.cat(parts)
                found[f"{there}.attn.out_proj.{end}"] = own[f"{here}.self_attn.out_proj.{end}"]
                found[f"{there}.ln_1.{end}"] = own[f"{here}.layer_norm1.{end}"]
                found[f"{there}.ln_2.{end}"] = own[f"{here}.layer_norm2.{end}"]
                found[f"{there}.mlp.c_fc.{end}"] = own[f"{here}.mlp.fc1.{end}"]
                found[f"{there}.mlp.c_proj.{end}"] = own[f"{here}.mlp.fc2.{end}"]
    for there, here in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        for end in ("weight", "bias"):
            found[f"{there}.{end}"] = own[f"{here}.{end}"]
    found["visual.conv1.weight"] = own["vision_model.embeddings.patch_embedding.weight"]
    found["visual.class_embedding"] = own["vision_model.embeddings.class_embedding"]
    found["visual.positional_embedding"] = own["vision_model.embeddings.position_embedding.weight"]
    found["token_embedding.weight"] = own["text_model.embeddings.token_embedding.weight"]
    found["positional_embedding"] = own["text_model.embeddings.position_embedding.weight"]
    found["visual.proj"] = own["visual_projection.weight"].T
    found["text_projection"] = own["text_projection.weight"].T
    return {name: tensor.clone() for name, tensor in found.items()}


def head_state(width=12):
    """The aesthetic head: linear layers with dropout between, which takes up numbers."""
    sizes, torch_state = [(width, 16), (16, 8), (8, 4), (4, 2), (2, 1)], torch.Generator().manual_seed(1)
    found = {}
    for number, (into, out) in zip((0, 2, 4, 6, 7), sizes, strict=True):
        found[f"layers.{number}.weight"] = torch.randn(out, into, generator=torch_state)
        found[f"layers.{number}.bias"] = torch.randn(out, generator=torch_state)
    return found
