"""Rendered scenes on disk, so that every fit of the world reads the same pictures without drawing them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from unifl.world.renderer import SIZE, render
from unifl.world.scenes import QUALITIES, sample_scenes

_CHUNK = 200


@dataclass(frozen=True)
class RenderedSet:
    """Pictures as uint8 `(n, 3, h, w)`, their captions and their qualities `(n, 4)`."""

    pixels: np.ndarray
    captions: list[str]
    quality: np.ndarray

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, rows: np.ndarray) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1]."""
        return torch.from_numpy(self.pixels[rows].astype(np.float32) / 255)


def rendered_set(folder: Path, name: str, number: int, *, seed: int, held_out: bool = False) -> RenderedSet:
    """Render `number` scenes once and memory-map them from then on; a half-drawn set continues."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npy"
    scenes = sample_scenes(number, seed=seed, held_out=held_out)
    if not path.exists():
        _draw(path, scenes)
    quality = np.array([scene.quality for scene in scenes], dtype=np.float32)
    assert quality.shape == (number, len(QUALITIES))
    return RenderedSet(np.load(path, mmap_mode="r"), [scene.caption for scene in scenes], quality)


def reencoded_set(data: RenderedSet, path: Path, reencode: Callable[[Tensor], Tensor]) -> RenderedSet:
    """The same pictures through the autoencoder and back, computed once and kept at `path`."""

    def again(rows: np.ndarray) -> np.ndarray:
        return (reencode(data.images(rows)) * 255).round().to(torch.uint8).numpy()

    return replace(data, pixels=computed_once(path, len(data), again))


def computed_once(
    path: Path, number: int, compute: Callable[[np.ndarray], np.ndarray], batch_size: int = 250
) -> np.ndarray:
    """An array with one entry per row, computed in batches, written whole to `path`, and from then on mapped.

    Args:
        compute: gives the entries of an array of row numbers.
    """
    if not path.exists():
        starts = tqdm(range(0, number, batch_size), desc=f"compute {path.stem}", mininterval=10)
        parts = [compute(np.arange(start, min(start + batch_size, number))) for start in starts]
        partial = path.with_suffix(".part.npy")
        np.save(partial, np.concatenate(parts))
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def _draw(path: Path, scenes: list) -> None:
    partial, marks = path.with_suffix(".part.npy"), path.with_suffix(".json")
    done = json.loads(marks.read_text()) if marks.exists() and partial.exists() else 0
    shape = (len(scenes), 3, SIZE, SIZE)
    pixels = np.lib.format.open_memmap(partial, mode="r+" if done else "w+", dtype=np.uint8, shape=shape)
    for start in tqdm(range(done, len(scenes), _CHUNK), desc=f"draw {path.stem}", mininterval=10):
        images = render(scenes[start : start + _CHUNK]).images
        pixels[start : start + len(images)] = (images * 255).round().to(torch.uint8).numpy()
        pixels.flush()
        marks.write_text(json.dumps(start + len(images)))
    partial.rename(path)
    marks.unlink(missing_ok=True)


def batch_rows(
    number: int, batch_size: int, step: int, seed: int, chances: np.ndarray | None = None
) -> np.ndarray:
    """The rows of a step: independent of all other steps, so that fits resume exactly.

    Args:
        chances: how often each row is drawn, `(number,)`, summing to 1; all equally often by default.
    """
    rng = np.random.default_rng([seed, step])
    if chances is None:
        return rng.integers(0, number, size=batch_size)
    return rng.choice(number, size=batch_size, p=chances)
