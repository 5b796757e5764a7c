"""Pictures that another tool drew, in the place of a model: GenEval's folders of a prompt each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data.pictures import check_picture, read_picture, to_tensor
from unifl.data.suites import drawn_folders, drawn_prompts
from unifl.errors import UserError
from unifl.metrics.result import FILES, ModelEntry, prompts_sha256


@dataclass(frozen=True, kw_only=True)
class DrawnPictures:
    """Pictures of prompts, by number; what is known of a model is not known here.

    Attributes:
        files: Of each prompt one per seed, all of one size.
        sha256: Of their contents.
        batch_size: Pictures at once.
    """

    files: tuple[tuple[Path, ...], ...]
    sha256: str
    batch_size: int = 32

    @classmethod
    def find(
        cls, folder: Path, prompts: Sequence[str], *, num_seeds: int, batch_size: int = 32
    ) -> DrawnPictures:
        """The pictures of a folder, all of which are looked at.

        Args:
            folder: With `00000/metadata.jsonl` and `00000/samples/0000.png`, ....
            prompts: Those whose pictures are wanted.
            num_seeds: Pictures of each, the first by number.
            batch_size: Pictures at once.

        Raises:
            UserError: A prompt without pictures or with too few, a file that is none, or pictures of several sizes.
        """
        places: dict[str, list[Path]] = {}
        for entry, place in zip(drawn_prompts(folder), drawn_folders(folder), strict=True):
            places.setdefault(entry.prompt, []).append(place)
        files, sizes, digest = [], dict[tuple[int, int], Path](), hashlib.sha256()
        for prompt in prompts:
            if not places.get(prompt):
                raise UserError(
                    f"{folder} has no pictures of {prompt!r}; draw them, or take the prompts of the folder"
                )
            found = _pictures(places[prompt].pop(0), num_seeds)
            for file in found:
                sizes.setdefault(check_picture(file), file)
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            files.append(found)
        if len(sizes) > 1:
            shown = " and ".join(
                f"{file} has {size[1]} x {size[0]} px" for size, file in list(sizes.items())[:2]
            )
            raise UserError(f"{shown}; pictures of one evaluation have one size")
        return cls(files=tuple(files), sha256=digest.hexdigest(), batch_size=batch_size)

    @property
    def settings(self) -> dict[str, Any]:
        """What they depend on beside what `entry` says: nothing."""
        return {}

    def entry(self, prompts: Sequence[str], seeds: Sequence[int]) -> ModelEntry:
        """Their row of `result.json`, without metrics."""
        return ModelEntry(
            weights_sha256=self.sha256,
            sampler=FILES,
            steps=0,
            guidance=1.0,
            spacing="unknown",
            seeds=list(seeds),
            prompts_sha256=prompts_sha256(prompts),
        )

    def draw(self, prompts: list[str], *, seed: int, indices: list[int]) -> Float[Tensor, "b 3 h w"]:
        """Read a batch; a seed is the number of a picture of its prompt, from 0."""
        return torch.stack([to_tensor(read_picture(self.files[index][seed])) for index in indices])


def _pictures(folder: Path, number: int) -> tuple[Path, ...]:
    found = [file for file in (folder / "samples").glob("*.png") if file.stem.isdecimal()]
    if len(found) < number:
        raise UserError(
            f"{folder / 'samples'} has {len(found)} pictures (0000.png, ...), and {number} are wanted; set --seeds"
        )
    return tuple(sorted(found, key=lambda file: int(file.stem))[:number])
