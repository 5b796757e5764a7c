"""Texts to embeddings: by a model that transformers can load, or from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError

Pool = Callable[[Any, Tensor], Tensor]


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to vectors.

    Attributes:
        fingerprint: Changes when the same text would give another vector; it names the cached vectors.
    """

    fingerprint: str

    def __call__(self, texts: Sequence[str], /) -> Float[Tensor, "b d"]:
        """One vector per text, of any length."""


class ModelEncoder:
    """A text model of transformers with its tokenizer; texts beyond its length are cut off."""

    def __init__(self, model: Any, tokenizer: Any, pool: Pool) -> None:
        """An encoder.

        Args:
            model: Takes `input_ids` and `attention_mask`.
            tokenizer: Of that model.
            pool: From its output and the attention mask (b, l) to vectors (b, d).
        """
        self.model, self.tokenizer, self._pool = model.eval(), tokenizer, pool
        positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        self._length = min(tokenizer.model_max_length, positions)
        self.fingerprint = _fingerprint(model)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], /) -> Float[Tensor, "b d"]:
        """One float32 vector per text, on the CPU."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self.model.device)
        output = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return self._pool(output, tokens.attention_mask).float().cpu()


def load_text_encoder(source: str | Path, *, device: str | torch.device = "cpu") -> ModelEncoder:
    """A text encoder by hub name or folder.

    A CLIP model gives its projected embedding of the text; a CLIP text encoder without projection, such as that of a
    Stable Diffusion folder, the last layer at the end of the text; any other model the mean over tokens of its last
    layer, as most sentence encoders are meant to be used.

    Args:
        source: A CLIP model, a sentence encoder, another text model, or a diffusers folder, whose `text_encoder` is
            taken.
        device: Where it runs.

    Raises:
        UserError: Nothing that can be loaded is there, or weights that the embedding needs are missing.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(source).expanduser()
    in_pipeline = (folder / "model_index.json").is_file()
    source = str(folder) if folder.exists() else str(source)
    try:
        config = AutoConfig.from_pretrained(source, subfolder="text_encoder" if in_pipeline else "")
        tokenizer = AutoTokenizer.from_pretrained(source, subfolder="tokenizer" if in_pipeline else "")
        loader, pool = _how_to_load(config)
        if config.model_type == "clip":  # its two parts have a width each, and only this one is always right
            config.text_config.projection_dim = config.projection_dim
            config = config.text_config
        model, info = loader.from_pretrained(
            source,
            config=config,
            subfolder="text_encoder" if in_pipeline else "",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load a text encoder from {source!r} ({reason}); give a CLIP model, a sentence encoder or a "
            "diffusers folder (offline only local ones load), or embeddings in a .npy file"
        ) from error
    # the pooler of BERT-like models is not used; everything else that is missing would be random
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"the text encoder at {source!r} lacks weights ({missing[0]} and {len(missing) - 1} more); its config does "
            "not fit its weights: download it again, or take another"
        )
    if getattr(config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return ModelEncoder(model.to(device), tokenizer, pool)


def load_embeddings(path: str | Path, num_prompts: int) -> Float[Tensor, "n d"]:
    """Embeddings that were made elsewhere.

    Args:
        path: A `.npy` file of shape (n, d), one row per prompt as `load_prompts` reads them, repeated ones included.
        num_prompts: n.

    Raises:
        UserError: No such file, another shape, or no floating-point numbers.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # read as far as it is used
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no .npy file ({error}); write it by numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or len(array) != num_prompts:
        raise UserError(
            f"{path} has shape {getattr(array, 'shape', None)}; it needs one row per prompt: ({num_prompts}, d)"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{path} holds {array.dtype}; embeddings are floating-point numbers")
    return torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.float32))


def _how_to_load(config: Any) -> tuple[Any, Pool]:
    from transformers import AutoModel, CLIPTextModel, CLIPTextModelWithProjection

    architectures = config.architectures or []
    if config.model_type == "clip" or "CLIPTextModelWithProjection" in architectures:
        return CLIPTextModelWithProjection, lambda output, mask: output.text_embeds
    if config.model_type == "clip_text_model":
        return CLIPTextModel, lambda output, mask: output.pooler_output
    return AutoModel, lambda output, mask: _mean(output.last_hidden_state, mask)


def _mean(hidden: Float[Tensor, "b l d"], mask: Tensor) -> Float[Tensor, "b d"]:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def _fingerprint(model: torch.nn.Module) -> str:
    digest = sha256(type(model).__name__.encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights.cpu().numpy()).data)
    return digest.hexdigest()
