"""Samples of models with their scores, in a folder: what people and rewards said of pictures that were drawn.

The folder has the pictures and a `metadata.jsonl` with one object per picture,

    {"prompt": "a red circle", "file_name": "000000.png", "seed": 3, "model": "runs/refl", "scores": {"color": 1.25}}

Samples are added at the end. `unifl.data.preferences` makes pairs of them by one score, or rows with that score.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unifl.data.pictures import read_picture, to_tensor
from unifl.data.text_files import json_rows, read_text
from unifl.disk import require_writable, write_atomically
from unifl.errors import UserError

METADATA = "metadata.jsonl"
SETTINGS = "generate.json"
"""Says how the pictures of a folder are drawn; there before the first of them."""


@dataclass(frozen=True)
class StoredSample:
    """One line of a store.

    Attributes:
        prompt: What was drawn.
        file_name: Of the picture, in the store's folder.
        seed: Of its noise.
        model: What drew it.
        scores: By name; higher is better.
    """

    prompt: str
    file_name: str
    seed: int
    model: str
    scores: dict[str, float]


class SampleStore:
    """A folder of samples, by number; it is made when the first sample is added.

    Args:
        folder: See the top of this file.

    Raises:
        UserError: A line that is no sample.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._samples: list[StoredSample] = []
        path = self.folder / METADATA
        if path.exists():
            rows = enumerate(json_rows(read_text(path), path), start=1)
            self._samples = [_sample(row, f"row {number} of {path}") for number, row in rows]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples)

    def __getitem__(self, index: int) -> StoredSample:
        """One sample, without its picture."""
        return self._samples[index]

    def image(self, index: int) -> Float[Tensor, "3 h w"]:
        """The picture of one sample, in [0, 1].

        Raises:
            UserError: It cannot be read.
        """
        return to_tensor(read_picture(self.folder / self[index].file_name))

    def add(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        model: str,
        scores: Mapping[str, Tensor],
    ) -> None:
        """Write samples; they are there, pictures first, once this returns.

        Args:
            images: In [0, 1]; kept in eight bits.
            prompts: One per picture.
            seeds: One per picture.
            model: What drew them.
            scores: By name; one per picture each.

        Raises:
            UserError: Other numbers of prompts, seeds or scores than pictures; a score that is not finite; a folder
                that cannot be written.
        """
        counts = {"prompts": len(prompts), "seeds": len(seeds)} | {k: len(v) for k, v in scores.items()}
        for name, count in counts.items():
            if count != len(images):
                raise UserError(
                    f"there are {len(images)} pictures and {count} {name}; give one for each picture"
                )
        for name, values in scores.items():
            if not torch.isfinite(values).all():
                raise UserError(f"the score {name!r} is not finite; leave such samples out")
        require_writable(self.folder / METADATA)
        added = []
        for index, image in enumerate(images):
            sample = StoredSample(
                prompts[index],
                f"{len(self) + index:06d}.png",
                int(seeds[index]),
                model,
                {name: float(values[index]) for name, values in scores.items()},
            )
            write_atomically(self.folder / sample.file_name, _png(image))
            added.append(sample)
        self._append(added)

    def _append(self, samples: Sequence[StoredSample]) -> None:
        """All lines at once; pictures without a line, after a crash, are written over by the next call."""
        lines = "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
        with (self.folder / METADATA).open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._samples.extend(samples)


def _png(image: Float[Tensor, "3 h w"]) -> bytes:
    values = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    content = io.BytesIO()
    Image.fromarray(values.numpy()).save(content, "PNG")
    return content.getvalue()


def _sample(row: Mapping[str, object], place: str) -> StoredSample:
    prompt, file_name, scores = row.get("prompt"), row.get("file_name"), row.get("scores")
    if not isinstance(prompt, str) or not isinstance(file_name, str) or not isinstance(scores, dict):
        raise UserError(
            f"{place} is no sample: prompt, file_name and scores are needed, and it has {sorted(row)}"
        )
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise UserError(f"the score {name!r} of {place} is {score!r}; a finite number is needed")
    seed, model = row.get("seed"), row.get("model")
    numbers = {str(name): float(score) for name, score in scores.items()}
    return StoredSample(
        prompt, file_name, int(seed) if isinstance(seed, int) else 0, str(model or ""), numbers
    )
