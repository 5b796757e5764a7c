"""`unifl prompts select`: a file of prompts becomes a smaller one, with a report of what that did."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from unifl.assembly import world_names
from unifl.assembly.device import chosen_device
from unifl.assembly.objects import is_dotted, make_object
from unifl.data import load_prompts
from unifl.data.selection import (
    Parser,
    Selection,
    SelectionConfig,
    embed_in_shards,
    load_embeddings,
    load_text_encoder,
    open_parser,
    select_prompts,
)
from unifl.data.selection.parsers import PARSERS
from unifl.data.selection.similarity import Similarity
from unifl.disk import require_writable, write_atomically
from unifl.errors import UserError

Progress = Callable[[str, int, int], None]

_ENDINGS = (".txt", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class SelectionRequest:
    """What `unifl prompts select` was asked for.

    Attributes:
        source: The file of prompts.
        output: A .txt or .jsonl file.
        config: What is kept.
        parser: "rules", "spacy", "spacy:<model>" or a dotted path.
        encoder: A hub name, a folder, `world:pipeline`, or a .npy file with one row per prompt.
        report: Where the JSON report goes, with a picture beside it; None takes `<output>.report.json`.
        cache: Where embeddings are kept; None takes `<output>.embeddings`.
        batch_size: Prompts per call of the encoder.
        device: Where the encoder runs and similarities are computed; "auto" takes a GPU if there is one.
    """

    source: Path
    output: Path
    encoder: str
    config: SelectionConfig = field(default_factory=SelectionConfig)
    parser: str = "rules"
    report: Path | None = None
    cache: Path | None = None
    batch_size: int = 64
    device: str = "auto"

    @property
    def report_path(self) -> Path:
        """Where the JSON report goes."""
        return self.report or self.output.with_name(f"{self.output.stem}.report.json")


def select_to_file(request: SelectionRequest, *, progress: Progress | None = None) -> Selection:
    """Select prompts and write them, the report and its picture.

    Raises:
        UserError: A file that cannot be read or written, an unknown parser or encoder, or what `select_prompts` raises.
            Whatever can be known before long work is raised before it.
    """
    started = time.perf_counter()
    _check_output(request)
    parser = find_parser(request.parser)
    prompts = load_prompts(request.source)
    _check_prompts(prompts, request)
    device = chosen_device(request.device)
    embeddings: Any
    if request.encoder.endswith(".npy"):
        embeddings = load_embeddings(request.encoder, len(prompts))
    else:
        embeddings = _cached_encoder(request, device, progress)
    chosen = select_prompts(
        prompts, embeddings, request.config, parser=parser, device=device, progress=progress
    )
    del embeddings
    _write_prompts([prompts[index] for index in chosen.indices], request.output)
    record = _record(request, chosen, time.perf_counter() - started)
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(request.report_path, text.encode())
    write_atomically(request.report_path.with_suffix(".png"), draw_similarities(chosen.similarity))
    return chosen


def find_parser(name: str) -> Parser:
    """A parser by name or dotted path.

    Raises:
        UserError: There is none, or it cannot be called.
    """
    if name.partition(":")[0] in PARSERS or not is_dotted(name):
        return open_parser(name)
    parser = make_object(name)
    if not callable(parser):
        raise UserError(f"the parser {name} cannot be called; it must be a function of a prompt")
    return _Checked(parser, name)


class _Checked:
    """A parser of the user's own, whose first wrong answer is explained."""

    def __init__(self, parser: Callable[[str], Any], name: str) -> None:
        self._parser, self._name = parser, name

    def __call__(self, prompt: str, /) -> Sequence[tuple[str, Sequence[str]]]:
        found = self._parser(prompt)
        try:
            answer = [(str(name), relations) for name, relations in found]
            if any(isinstance(relations, str) for _, relations in answer):
                raise TypeError("relations as one string")  # whose letters would count
            return [(name, list(relations)) for name, relations in answer]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the parser {self._name} returned {found!r} for {prompt!r}; it must return a list of "
                '(name, relations), such as [("cat", ["red", "on mat"])]'
            ) from error


def draw_similarities(similarity: dict[str, Similarity]) -> bytes:
    """A PNG with the histograms of nearest-neighbour similarities before and after."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, label in (("random", "random prompts"), ("selected", "selected prompts")):
        values = similarity[name].nearest
        if len(values):
            axes.hist(
                values.numpy(),
                bins=60,
                density=True,
                alpha=0.6,
                label=f"{label}: ANS {similarity[name].ans:.3f}",
            )
    axes.set_xlabel("cosine to the nearest other prompt")
    axes.set_ylabel("density")
    axes.set_title(f"{similarity['selected'].total} prompts each")
    if axes.has_data():
        axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _check_output(request: SelectionRequest) -> None:
    if request.output.suffix not in _ENDINGS:
        raise UserError(f"cannot write prompts to {request.output}; use a {' or '.join(_ENDINGS)} file")
    if request.report_path.suffix != ".json":
        raise UserError(f"the report {request.report_path} is written as JSON; let its name end in .json")
    if request.output.resolve() == request.source.resolve():
        raise UserError(f"{request.output} is also what is read; write to another file")
    if request.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"the device is {request.device}, but torch sees no GPU here; use cpu or auto")
    if request.batch_size < 1:
        raise UserError(f"batch_size is {request.batch_size}; it must be at least 1")
    for path in (request.output, request.report_path):
        require_writable(path)


def _check_prompts(prompts: Sequence[str], request: SelectionRequest) -> None:
    for number, prompt in enumerate(prompts, start=1):
        if request.output.suffix == ".txt" and re.search(r"[\r\n]", prompt):
            raise UserError(
                f"prompt {number} of {request.source} has a line break, which a .txt file cannot hold; "
                f"write {request.output.with_suffix('.jsonl').name}"
            )


def _cached_encoder(
    request: SelectionRequest, device: str, progress: Progress | None
) -> Callable[[list[str]], torch.Tensor]:
    name = request.encoder
    source = world_names.pipeline(name) if name.startswith(world_names.PREFIX) else name
    encoder = load_text_encoder(source, device=device)
    folder = request.cache or request.output.with_name(f"{request.output.stem}.embeddings")
    require_writable(folder / "shard.npy")

    def embed(texts: list[str]) -> torch.Tensor:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress("embeddings", done, total)

        return embed_in_shards(texts, encoder, folder, batch_size=request.batch_size, progress=report)

    return embed


def _write_prompts(prompts: Sequence[str], path: Path) -> None:
    if path.suffix == ".jsonl":
        lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    else:
        lines = list(prompts)
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _record(request: SelectionRequest, chosen: Selection, seconds: float) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": str(request.source),
        "output": str(request.output),
        "settings": asdict(request.config) | {"parser": request.parser, "encoder": request.encoder},
        "counts": asdict(chosen.counts),
        "ans": {
            name: {
                "value": _finite(found.ans),
                "low": _finite(found.low),
                "high": _finite(found.high),
                "prompts": found.total,
                "measured": len(found.nearest),
            }
            for name, found in chosen.similarity.items()
        },
        "mode": chosen.mode,
        "check": None if chosen.check is None else asdict(chosen.check),
        "seconds": chosen.seconds | {"total": seconds},
        "peak_memory_bytes": peak_memory(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def peak_memory() -> int | None:
    """Most memory that this process has held so far, in bytes; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
