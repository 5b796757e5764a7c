"""What a report is made from, and how it is found in a run folder.

    <run>/result.json, scores/<model>.npz
    <run>/samples/metadata.jsonl (prompt, seed[, index]), samples/<model>/<index>.png
    <run>/config.yaml, metrics.jsonl, timings.jsonl, samples/<step>-<name>.png     what a training run leaves
    <run>/<part>/...                                                        the same, for runs that belong to it

Each of them may be missing.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unifl.errors import UserError
from unifl.evaluation.audit import read_metrics
from unifl.evaluation.grid import to_pil
from unifl.evaluation.model_result import ModelResult
from unifl.metrics.result import Result, read_result


@dataclass(kw_only=True)
class Pictures:
    """Pictures of several models with the same prompts and seeds.

    Attributes:
        prompts: prompt of each row.
        seeds: noise seed of each row; None where it is not known.
        images: by model, one picture per row; None where a model lacks it.
    """

    prompts: list[str]
    seeds: list[int | None]
    images: dict[str, list[Image.Image | None]]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A grid of pictures that was drawn while training."""

    step: int
    name: str
    image: Image.Image


@dataclass(kw_only=True)
class ReportInputs:
    """Everything that a report can show; what is empty is left out of the page.

    Attributes:
        title: heading of the page.
        result: figures.
        scores: evaluated models, by id, for paired differences to the base.
        pictures: rows of pictures.
        logs: rows of ``metrics.jsonl`` by training run; the name is empty for the run folder itself.
        settings: text of ``config.yaml`` by training run.
        previews: grids drawn while training, by training run.
        seconds: time of all training steps, by training run.
    """

    title: str
    result: Result | None = None
    scores: dict[str, ModelResult] = field(default_factory=dict)
    pictures: Pictures | None = None
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    previews: dict[str, list[Preview]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """True if there is nothing to show."""
        return not (
            self.result or self.scores or self.pictures or self.logs or self.settings or self.previews
        )


def read_run_folder(folder: str | Path) -> ReportInputs:
    """Collect what a run folder and its direct subfolders hold.

    Raises:
        UserError: if the folder is missing, holds nothing to report, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a run")
    inputs = ReportInputs(title=folder.resolve().name, pictures=read_pictures(folder / "samples"))
    if (folder / "result.json").exists():
        inputs.result = read_result(folder / "result.json")
    for path in sorted(folder.glob("scores/*.npz"), key=lambda p: natural(p.name)):
        inputs.scores[decode_id(path.stem)] = ModelResult.load(path)
    _read_training(folder, "", inputs)
    for part in sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: natural(p.name)):
        # A checkpoint repeats the settings of the run that it belongs to.
        if not part.name.startswith("checkpoint-"):
            _read_training(part, part.name, inputs)
    if inputs.empty:
        raise UserError(
            f"{folder} holds nothing to report: no result.json, metrics.jsonl, samples or config.yaml"
        )
    return inputs


def _read_training(folder: Path, name: str, inputs: ReportInputs) -> None:
    """Add what a training run left in its folder."""
    if (folder / "metrics.jsonl").exists():
        inputs.logs[name] = read_metrics(folder / "metrics.jsonl")
    if (folder / "timings.jsonl").exists():
        inputs.seconds[name] = sum(row.get("seconds", 0.0) for row in read_metrics(folder / "timings.jsonl"))
    if (folder / "config.yaml").exists():
        inputs.settings[name] = (folder / "config.yaml").read_text(encoding="utf-8")
    grids = [(path, re.fullmatch(r"(\d+)-(.+)", path.stem)) for path in sorted(folder.glob("samples/*.png"))]
    previews = [
        Preview(step=int(match[1]), name=match[2], image=_open(path))
        for path, match in grids
        if match is not None
    ]
    if previews:
        inputs.previews[name] = previews


def read_pictures(folder: Path) -> Pictures | None:
    """Read ``samples/``; rows are the indices that any model has. None if there is no picture."""
    found = {
        decode_id(part.name): {int(p.stem): p for p in part.glob("*.png") if p.stem.isdigit()}
        for part in sorted((p for p in folder.glob("*") if p.is_dir()), key=lambda p: natural(p.name))
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        return None
    about = _read_metadata(folder / "metadata.jsonl")
    indices = sorted({index for files in found.values() for index in files})
    rows = [about.get(index, {}) for index in indices]
    return Pictures(
        prompts=[str(row.get("prompt", f"sample {index}")) for index, row in zip(indices, rows, strict=True)],
        seeds=[row.get("seed") for row in rows],
        images={
            name: [_open(files[index]) if index in files else None for index in indices]
            for name, files in found.items()
        },
    )


def save_pictures(
    folder: str | Path,
    images: Mapping[str, Float[Tensor, "n 3 h w"]],
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> None:
    """Write ``samples/`` of a run folder: one PNG per model and row, and ``metadata.jsonl``.

    Pictures of other models stay if they have the same prompts and seeds. Otherwise they are removed, and so are older
    ones of these models: a row must show one prompt and one noise.

    Args:
        folder: the run folder.
        images: by model id, pictures in [0, 1]; row i of every model belongs to prompt i.
        prompts: one per row.
        seeds: noise seed of each row.
    """
    samples = Path(folder) / "samples"
    for name, batch in images.items():
        if len(batch) != len(prompts) or len(prompts) != len(seeds):
            raise UserError(
                f"{name}: {len(batch)} pictures, {len(prompts)} prompts, {len(seeds)} seeds; they must agree"
            )
        part = samples / encode_id(name)
        part.mkdir(parents=True, exist_ok=True)
        _remove_pictures(part)
        for index, image in enumerate(batch):
            to_pil(image).save(part / f"{index}.png")
    rows = [
        json.dumps({"index": i, "prompt": prompt, "seed": seed}, ensure_ascii=False)
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    samples.mkdir(parents=True, exist_ok=True)
    text, about = "\n".join(rows) + "\n", samples / "metadata.jsonl"
    if about.exists() and about.read_text(encoding="utf-8") != text:
        for part in (path for path in samples.iterdir() if path.is_dir()):
            if decode_id(part.name) not in images:
                _remove_pictures(part)
    about.write_text(text, encoding="utf-8")


def encode_id(model_id: str) -> str:
    """A model id as one file name; hub ids have a slash."""
    return model_id.replace("/", "%2F")


def decode_id(name: str) -> str:
    """The inverse of ``encode_id``."""
    return name.replace("%2F", "/")


def png_bytes(image: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``step-20`` before ``step-100``."""
    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", name) if t]


def _remove_pictures(part: Path) -> None:
    for path in part.glob("*.png"):
        if path.stem.isdigit():
            path.unlink()


def _read_metadata(path: Path) -> dict[int, dict[str, Any]]:
    if not path.exists():
        return {}
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
            rows[int(row.get("index", number))] = row
        except (ValueError, AttributeError):
            raise UserError(f"{path}, line {number + 1} is not a JSON row; write the samples again") from None
    return rows


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError):
        raise UserError(f"{path} cannot be read as a picture; delete it or write the samples again") from None
