"""A model of transformers that sees pictures and reads and writes text.

Pictures and questions become its inputs here. For the Qwen family that is done without its processor class, which
needs torchvision for videos; others (LLaVA, PaliGemma, ...) come with a processor that does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unifl.errors import UserError
from unifl.feedback.pretrained import find_place
from unifl.feedback.scorers.files import require_exact

Side = Literal["left", "right"]


class VisionLanguage:
    """A model with what prepares its inputs.

    Args:
        model: `...ForConditionalGeneration`.
        prepare: Its processor, or a `QwenInputs`.
        device: Where it runs.
    """

    def __init__(self, model: Any, prepare: Any, device: str) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.prepare = prepare
        self.device = device
        self.tokenizer = prepare.tokenizer

    def inputs(
        self, pictures: Sequence[Sequence[np.ndarray]], questions: Sequence[str], *, side: Side = "left"
    ) -> Mapping[str, Tensor]:
        """What the model is shown.

        Args:
            pictures: Of each question, (h, w, 3) in bytes.
            questions: In words, with prompts that `require_plain` has seen.
            side: Where shorter ones are filled up.
        """
        files = [[Image.fromarray(picture) for picture in group] for group in pictures]
        talks = [
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": file} for file in group),
                        {"type": "text", "text": text},
                    ],
                }
            ]
            for group, text in zip(files, questions, strict=True)
        ]
        self.tokenizer.padding_side = side
        if isinstance(self.prepare, QwenInputs):
            found = self.prepare(talks)
        else:
            found = self.prepare.apply_chat_template(
                talks,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
            )
        kind = next(self.model.parameters()).dtype
        return {
            key: value.to(self.device, kind if value.is_floating_point() else value.dtype)
            for key, value in found.items()
        }

    @torch.no_grad()
    def next_word(
        self, pictures: Sequence[Sequence[np.ndarray]], questions: Sequence[str], word: str
    ) -> Float[Tensor, " b"]:
        """The probability that each answer begins with a word, or with the beginning of it that is a token."""
        token = self.tokenizer.encode(word, add_special_tokens=False)[0]
        logits = self.model(**self.inputs(pictures, questions)).logits[:, -1]
        return logits.float().softmax(-1)[:, token].cpu()

    @torch.no_grad()
    def answers(
        self,
        pictures: Sequence[Sequence[np.ndarray]],
        questions: Sequence[str],
        *,
        tokens: int,
        turn: int = 0,
    ) -> list[str]:
        """An answer in words to each question.

        Args:
            pictures: Of each question.
            questions: In words.
            tokens: At most in an answer.
            turn: 0 is the likeliest answer; further ones are drawn, each with its own seed.
        """
        inputs = self.inputs(pictures, questions)
        with torch.random.fork_rng():
            torch.manual_seed(turn)
            found = self.model.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=turn > 0,
                **({"temperature": 0.7} if turn else {"temperature": None, "top_p": None, "top_k": None}),
            )
        return self.tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class QwenInputs:
    """What the processors of Qwen2-VL and its successors do with pictures and text.

    Args:
        looking: Its image processor.
        tokenizer: With a chat template.
        place: The token that stands for a piece of a picture.
        minimum: Pixels below which pictures are scaled up; None is the image processor's own.
        maximum: Pixels above which they are scaled down.
    """

    def __init__(
        self,
        looking: Any,
        tokenizer: Any,
        place: int,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> None:
        self.looking, self.tokenizer, self.place = looking, tokenizer, place
        self.limits = {
            key: value
            for key, value in (("min_pixels", minimum), ("max_pixels", maximum))
            if value is not None
        }

    def __call__(self, talks: Sequence[Any]) -> dict[str, Tensor]:
        """Tokens with room for each picture, and the pictures in patches."""
        files = [part["image"] for talk in talks for part in talk[0]["content"] if part["type"] == "image"]
        seen = self.looking(images=files, return_tensors="pt", **self.limits)
        word = self.tokenizer.convert_ids_to_tokens(self.place)
        pieces = (seen["image_grid_thw"].prod(-1) // self.looking.merge_size**2).tolist()
        texts = []
        for talk in talks:
            head, *rest = self.tokenizer.apply_chat_template(
                talk, tokenize=False, add_generation_prompt=True
            ).split(word)
            texts.append(head + "".join(word * pieces.pop(0) + part for part in rest))
        found = self.tokenizer(texts, padding=True, return_tensors="pt")
        return {
            "input_ids": found.input_ids,
            "attention_mask": found.attention_mask,
            "mm_token_type_ids": (found.input_ids == self.place).long(),
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        }


def load_vision_language(
    weights: str, base: str, revision: str | None, *, device: str, dtype: str = "auto"
) -> VisionLanguage:
    """A published model.

    Args:
        weights: Folder or hub name.
        base: Where its tokenizer and processor are; "" is with the weights.
        revision: Of the weights.
        device: `auto` is the GPU where there is one.
        dtype: Of the weights; `auto` is what they were saved in.

    Raises:
        UserError: Nothing there, another kind of model, or weights that are missing or surplus.
    """
    from transformers import AutoModelForImageTextToText

    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            find_place(weights), revision=revision, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{weights} cannot be loaded as a model that sees and writes ({str(error).splitlines()[0]}); give a "
            "folder or a hub name of one that transformers has"
        ) from error
    require_exact(weights, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))
    prepare = load_prepare(base or weights, model.config, None if base else revision)
    return VisionLanguage(model, prepare, chosen(device))


def load_prepare(
    name: str, config: Any, revision: str | None, *, minimum: int | None = None, maximum: int | None = None
) -> Any:
    """What makes inputs of pictures and questions; limits of size are for the Qwen family.

    Raises:
        UserError: No tokenizer, image processor or chat template there.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    place = find_place(name)
    try:
        if not str(config.model_type).startswith("qwen"):
            return AutoProcessor.from_pretrained(place, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
        looking = AutoImageProcessor.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} has no tokenizer or image processor that can be read ({str(error).splitlines()[0]}); give a model "
            "that has both as `base`"
        ) from error
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {name} has no chat template; give an instruct model as `base`")
    return QwenInputs(looking, tokenizer, config.image_token_id, minimum=minimum, maximum=maximum)


def require_plain(prompts: Sequence[str], tokenizer: Any) -> None:
    """Refuse prompts that could end a question or stand for a picture.

    Args:
        prompts: Before they are put into a question.
        tokenizer: Knows its own language.

    Raises:
        UserError: With the first token.
    """
    own = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    for prompt in prompts:
        found = next((token for token in own if token in prompt), None)
        if found is not None:
            raise UserError(
                f"the prompt {prompt[:100]!r} holds {found}, which the judge takes for its own language; leave it out"
            )


def chosen(device: str) -> str:
    """The GPU for `auto` where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
