"""HPSv3: Qwen2-VL with a head on the hidden state of one token, which gives a mean and a spread.

    mu, sigma = W_3 relu(W_2 relu(W_1 h)),   h at <|Reward|>

(Ma et al., arXiv 2508.03789; names and sizes as in github.com/MizzenAI/HPSv3). It was trained with positions that count
tokens, pictures included, where Qwen2-VL counts rows and columns of pictures; so they are given here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.pretrained import find_place
from unifl.feedback.scorers.files import load_exact, read_state, require_exact
from unifl.feedback.scorers.prompts import require_prompts
from unifl.feedback.scorers.questions import asked
from unifl.feedback.scorers.vision_language import VisionLanguage, chosen, load_prepare, require_plain

REWARD = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""Of every picture, small and large, up to the rounding of its sides."""
_IDLE = "lm_head.weight"  # the head that writes, which is not asked
_HEAD = "rm_head."
_WORDS = "language_model.embed_tokens.weight"


class Hpsv3:
    """The published model; pictures and prompts in, mu out.

    Args:
        language: Qwen2-VL without its own head.
        head: From hidden states to (mu, sigma).
        question: With `{prompt}` and `<|Reward|>`.
    """

    def __init__(self, language: VisionLanguage, head: nn.Module, question: str) -> None:
        self.language, self.question = language, question
        self.head = head.to(language.device).eval().requires_grad_(False)
        self.reward = language.tokenizer.convert_tokens_to_ids(REWARD)

    def __call__(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """Scores, one per picture."""
        return self.distribution(pictures, prompts)[:, 0].tolist()

    @torch.no_grad()
    def distribution(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Float[Tensor, "b 2"]:
        """(mu, sigma as the head gives it) of each picture.

        Raises:
            UserError: Prompts that it cannot read.
        """
        require_prompts(prompts, len(pictures))
        require_plain(prompts, self.language.tokenizer)
        questions = [asked(self.question, prompt) for prompt in prompts]
        inputs = self.language.inputs([[picture] for picture in pictures], questions, side="right")
        tokens = inputs["input_ids"]
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(3, *tokens.shape)
        hidden = self.language.model(**inputs, position_ids=places).last_hidden_state
        at = (tokens == self.reward).int().argmax(-1)
        return self.head(hidden[torch.arange(len(at)), at].float()).cpu()


def load_hpsv3(weights: str, base: str, revision: str | None, *, device: str, question: str) -> Hpsv3:
    """From the published file.

    Args:
        weights: `HPSv3.safetensors`, a path or a place on the hub.
        base: Qwen2-VL whose config, tokenizer and image processor go with it.
        revision: Of the weights.
        device: `auto` is the GPU where there is one.
        question: See `Hpsv3`.

    Raises:
        UserError: Nothing there, or weights that are missing, surplus, or of other shapes.
    """
    from transformers import Qwen2VLConfig, Qwen2VLModel

    own, head = _parted(read_state(weights, revision), weights)
    try:
        config = Qwen2VLConfig.from_pretrained(find_place(base))
    except OSError as error:
        raise UserError(
            f"{weights} needs the config of {base}, which cannot be reached; give a folder with it as `base`"
        ) from error
    prepare = load_prepare(base, config, None, minimum=PIXELS, maximum=PIXELS)
    prepare.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
    config.text_config.vocab_size = own[_WORDS].shape[0]
    if len(prepare.tokenizer) > config.text_config.vocab_size:
        raise UserError(
            f"the tokenizer of {base} has {len(prepare.tokenizer)} words with {REWARD}, and {weights} has "
            f"{config.text_config.vocab_size}; give Qwen/Qwen2-VL-7B-Instruct as `base`"
        )
    try:
        model, info = Qwen2VLModel.from_pretrained(
            None,
            config=config,
            state_dict=own,
            dtype=own[_WORDS].dtype,
            output_loading_info=True,
        )
    except RuntimeError as error:
        raise UserError(
            f"{weights} does not fit the config of {base} ({str(error).strip().splitlines()[-1].strip()}); give "
            "Qwen/Qwen2-VL-7B-Instruct as `base`"
        ) from error
    require_exact(weights, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))
    return Hpsv3(VisionLanguage(model, prepare, chosen(device)), _head(head, weights), question)


def _parted(state: Mapping[str, Tensor], weights: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of Qwen2-VL, in the layout of transformers 5, and of the head."""
    own: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(_HEAD):
            head[name.removeprefix(_HEAD)] = tensor
        elif name.startswith("visual."):
            own[name] = tensor
        elif name.startswith("model."):
            inner = name.removeprefix("model.")
            is_new = inner.startswith(("visual.", "language_model."))
            own[inner if is_new else f"language_model.{inner}"] = tensor
        elif name != _IDLE:
            raise UserError(f"{weights} holds {name}, which HPSv3 does not have; give the published file")
    if _WORDS not in own:
        raise UserError(f"{weights} holds no weights of Qwen2-VL; give HPSv3.safetensors as it was published")
    return own, head


def _head(state: Mapping[str, Tensor], weights: str) -> nn.Module:
    sizes = [state[key].shape for key in ("0.weight", "3.weight", "5.weight") if key in state]
    if len(sizes) != 3:
        raise UserError(
            f"{weights} lacks weights of the reward head (rm_head.0, .3 and .5); give HPSv3.safetensors as it was "
            "published"
        )
    head = nn.Sequential(
        nn.Linear(sizes[0][1], sizes[0][0]),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(sizes[1][1], sizes[1][0]),
        nn.ReLU(),
        nn.Linear(sizes[2][1], sizes[2][0]),
    )
    load_exact(head, state, weights=weights)
    return head
