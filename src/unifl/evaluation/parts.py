"""What has been drawn and judged of a model, batch by batch, so that an interrupted evaluation goes on."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.disk import read_arrays, write_atomically
from unifl.evaluation.model_result import Origin

_ORIGIN = "origin.json"


@dataclass(frozen=True)
class Part:
    """One batch: the judge's scores and features, and the pictures of it that are to be kept as files."""

    scores: dict[str, Float[np.ndarray, " b"]]
    features: Float[np.ndarray, "b d"]
    previews: Float[Tensor, "k 3 h w"]


class Parts:
    """A folder of batches of one model.

    Args:
        folder: Gets a file per batch.
        origin: What the batches depend on; those of another origin are deleted.
        keep: Whether batches that are there may be used at all.
    """

    def __init__(self, folder: Path, origin: Origin, *, keep: bool) -> None:
        self.folder = folder
        about = json.dumps(asdict(origin), sort_keys=True)
        path = folder / _ORIGIN
        if not keep or not path.is_file() or path.read_text(encoding="utf-8") != about:
            self.clear()
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, about.encode())

    def load(self, seed: int, indices: Sequence[int], previews: int) -> Part | None:
        """A batch; None if it is not there, is damaged, or has fewer pictures than are to be kept."""
        try:
            data = read_arrays(self._path(seed, indices))
            kept = torch.from_numpy(data.pop("previews")).float() / 255
            features = data.pop("features")
        except (ValueError, KeyError):
            return None
        return None if len(kept) < previews else Part(data, features, kept[:previews])

    def save(self, seed: int, indices: Sequence[int], part: Part) -> None:
        """Write a batch; it appears complete."""
        buffer = io.BytesIO()
        previews = (part.previews.clamp(0, 1) * 255).round().byte().numpy()
        np.savez(buffer, **part.scores, features=part.features, previews=previews)  # type: ignore[arg-type]
        write_atomically(self._path(seed, indices), buffer.getvalue())

    def clear(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, seed: int, indices: Sequence[int]) -> Path:
        """Other batches have other names: a batch size of another call finds nothing, and draws again."""
        digest = hashlib.sha256(repr(list(indices)).encode()).hexdigest()[:16]
        return self.folder / f"{seed}-{indices[0]:06d}-{digest}.npz"
