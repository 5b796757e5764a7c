"""Features of the pictures of a folder, kept as a file that a later call reads."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from unifl.data.pictures import check_picture, read_picture, to_tensor
from unifl.data.store import METADATA, SETTINGS
from unifl.data.text_files import numbered_rows, read_text
from unifl.disk import read_arrays, write_atomically
from unifl.errors import UserError
from unifl.feedback.features import PictureFeatures
from unifl.metrics.spectrum import high_frequency_share

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
CUT = 0.5


@dataclass(frozen=True)
class Picture:
    """A file, with what its `metadata.jsonl` says of it, if there is one.

    Attributes:
        path: Of the file.
        prompt: What it was drawn for.
        seed: Of its noise, which depends on `index` too.
        index: Number of its prompt among those that were drawn.
    """

    path: Path
    prompt: str | None = None
    seed: int | None = None
    index: int | None = None


@dataclass(frozen=True)
class FolderFeatures:
    """What is known of the pictures of a folder.

    Attributes:
        pictures: In the order of rows.
        features: One row per picture.
        high_frequency: Share of energy at fine detail of each, see `high_frequency_share`.
    """

    pictures: tuple[Picture, ...]
    features: Float[np.ndarray, "n d"]
    high_frequency: Float[np.ndarray, " n"]


def find_pictures(folder: str | Path) -> list[Picture]:
    """The rows of a `metadata.jsonl`, or else all picture files of a folder by name.

    Raises:
        UserError: No such folder, a row without `file_name` or with one outside the folder, fewer than two pictures, or
            pictures whose drawing was interrupted.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"there is no folder {place}; check the path")
    path = place / METADATA
    if path.is_file():
        found = [_row(row, place, f"line {n} of {path}") for n, row in numbered_rows(read_text(path), path)]
    elif (place / SETTINGS).is_file():
        raise UserError(
            f"{place} has {SETTINGS} and no {METADATA}: what drew its pictures was interrupted; go on with the same "
            "`unifl generate`"
        )
    else:
        found = [Picture(p) for p in sorted(place.iterdir()) if p.suffix.lower() in ENDINGS]
    if not found:
        raise UserError(f"{place} holds no pictures ({', '.join(ENDINGS)}); name the folder they lie in")
    if len(found) < 2:
        raise UserError(f"{place} holds one picture, and numbers here are of sets; give two or more")
    return found


def picture_sizes(pictures: Sequence[Picture]) -> list[tuple[int, int]]:
    """Height and width of each, after a look at the whole file.

    Raises:
        UserError: A file that is no picture, or is damaged.
    """
    return [check_picture(one.path) for one in pictures]


def folder_features(
    pictures: Sequence[Picture],
    sizes: Sequence[tuple[int, int]],
    extractor: PictureFeatures,
    kept: Path,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> FolderFeatures:
    """Features of pictures, read from a file where the same pictures were seen by the same weights.

    Args:
        pictures: See `find_pictures`.
        sizes: See `picture_sizes`.
        extractor: On `device`.
        kept: Folder for the file.
        batch_size: Pictures of one size at once.
        device: Where pictures are shown.
        progress: Called with (pictures done, pictures in all).
    """
    path = kept / f"{extractor.name}-{_fingerprint(pictures, extractor)}.npz"
    known = _load(path)
    if known is not None and len(known[0]) == len(pictures):
        return FolderFeatures(tuple(pictures), *known)
    rows: list[np.ndarray | None] = [None] * len(pictures)
    shares, done = np.zeros(len(pictures)), 0
    for batch in _batches(sizes, batch_size):
        images = torch.stack([to_tensor(read_picture(pictures[at].path)) for at in batch])
        shares[batch] = high_frequency_share(images, CUT).numpy()
        for at, row in zip(batch, extractor(images.to(device)).cpu().double().numpy(), strict=True):
            rows[at] = row
        done += len(batch)
        if progress is not None:
            progress(done, len(pictures))
    features = np.stack([row for row in rows if row is not None])
    buffer = io.BytesIO()
    np.savez(buffer, features=features, high_frequency=shares)
    kept.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return FolderFeatures(tuple(pictures), features, shares)


def _row(row: dict, folder: Path, place: str) -> Picture:
    name, prompt = row.get("file_name"), row.get("prompt")
    if not isinstance(name, str):
        raise UserError(f"{place} has no file_name; write one, or remove the row")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{place} names {name}, which lies outside {folder}; keep pictures in their folder")
    seed, index = (value if isinstance(value, int) else None for value in (row.get("seed"), row.get("index")))
    return Picture(path, prompt if isinstance(prompt, str) else None, seed, index)


def _fingerprint(pictures: Sequence[Picture], extractor: PictureFeatures) -> str:
    digest = hashlib.sha256(extractor.sha256().encode())
    for one in pictures:
        state = one.path.stat()
        digest.update(
            f"{one.path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:20]


def _load(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        found = read_arrays(path, "features", "high_frequency")
    except ValueError:
        return None
    return found["features"], found["high_frequency"]


def _batches(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Numbers of pictures of one size."""
    found = []
    for size in dict.fromkeys(sizes):
        alike = [at for at, other in enumerate(sizes) if other == size]
        found += [alike[start : start + batch_size] for start in range(0, len(alike), batch_size)]
    return found
