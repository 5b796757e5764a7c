"""Embeddings kept on disk while they are made, so that a run that was interrupted goes on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data.selection.embeddings import TextEncoder
from unifl.data.selection.greedy import Progress
from unifl.disk import write_atomically

_SHARD = 4096


def embed_in_shards(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: str | Path,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Float[Tensor, "n d"]:
    """Embed texts, 4096 to a file; files that are there already are read instead.

    A file is named by the encoder's fingerprint and its texts, so that other texts or another encoder never read it.

    Args:
        texts: At least one.
        encoder: See `TextEncoder`.
        folder: Where the files are; made if missing.
        batch_size: Texts per call of the encoder.
        progress: Called with (texts done, n) after each batch.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, len(texts), _SHARD):
        part = texts[start : start + _SHARD]
        path = folder / f"{_name(encoder.fingerprint, part)}.npy"
        if not path.is_file():
            batches = []
            for first in range(0, len(part), batch_size):
                batches.append(encoder(part[first : first + batch_size]))
                if progress is not None:
                    progress(start + min(first + batch_size, len(part)), len(texts))
            content = io.BytesIO()
            np.save(content, torch.cat(batches).float().cpu().numpy())
            write_atomically(path, content.getvalue())
        shards.append(torch.from_numpy(np.load(path, allow_pickle=False)))
        if progress is not None:
            progress(start + len(part), len(texts))
    return torch.cat(shards)


def _name(fingerprint: str, texts: Sequence[str]) -> str:
    digest = sha256(fingerprint.encode())
    for text in texts:
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()[:32]
