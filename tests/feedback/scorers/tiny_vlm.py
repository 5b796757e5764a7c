"""A tiny random Qwen2-VL and LLaVA, saved as their authors save them."""

from __future__ import annotations

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<image>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "IMAGE{% else %}{{c['text']}}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(image):
    """Bytes, and Yes and No as words of their own, as in Qwen's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o")]
    vocab = {piece: at for at, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    found = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
    )
    found.chat_template = TEMPLATE.replace("IMAGE", image)
    return found


def qwen2_vl(folder, *, seed=0, extra=()):
    """Qwen2-VL with pieces of 28 px, and pictures of at most 16 of them."""
    words = tokenizer("<|vision_start|><|image_pad|><|vision_end|>")
    looking = hf.Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=28 * 28 * 16, patch_size=14, merge_size=2
    )

    def number(token):
        return words.convert_tokens_to_ids(token)

    config = hf.Qwen2VLConfig(
        text_config={
            "vocab_size": len(words) + len(extra),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "mlp_ratio": 2,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    model = _larger(hf.Qwen2VLForConditionalGeneration(config), seed)
    for part in (model, words, looking):
        part.save_pretrained(folder)
    return model, words, looking


def llava(folder, *, seed=0):
    """LLaVA around a CLIP of 28 px, with its own processor."""
    words = tokenizer("<image>")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**sizes, image_size=28, patch_size=14),
        text_config=hf.LlamaConfig(**sizes, vocab_size=len(words), pad_token_id=words.pad_token_id),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    model = _larger(hf.LlavaForConditionalGeneration(config), seed)
    looking = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, resample=3
    )
    processor = hf.LlavaProcessor(
        image_processor=looking,
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def _larger(model, seed):
    """Larger weights: answers of random ones hardly depend on what they are shown."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
