"""`unifl bench unifl`: what a training step costs beyond the network evaluations that its equations need.

    from unifl.assembly.bench import bench_unifl
    record = bench_unifl(Path("runs/bench"))

Each training step of the real loop is paired with the same evaluations written by hand (`bench_bare`), on the same
rows, with the same stops and the same graph. The ratio is the median over pairs of the step's time, without its
optimisers, over the bare time. Losses, random draws, loading of rows, checks and records of the loop therefore count
as cost of the step.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table

from unifl import config as configs
from unifl.assembly.bench_cases import CaseConfig, Parts, make_method, published_cases, world_parts
from unifl.assembly.bench_timing import WARM_UP, Timings, time_pairs
from unifl.data import Sample
from unifl.errors import UserError
from unifl.methods.refl import ReFL
from unifl.methods.unifl import UniFL
from unifl.metrics.result import Bench, Result, read_existing, update_result

LIMIT = 1.10
"""The most that a step may take, as a multiple of its evaluations run bare."""

TIMINGS = "timings.json"
"""Raw timings, beside `result.json` in the output folder."""


def bench_unifl(
    output: str | Path,
    *,
    source: Parts | None = None,
    cases: Mapping[str, CaseConfig] | None = None,
    pairs: int = 30,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Benchmark ReFL and both stages of UniFL on the CPU.

    Args:
        output: Folder for `result.json` (merged into one that is there) and `timings.json`.
        source: Model, feedback and data; the embedded world by default.
        cases: Method configs by name; those of `published_cases` by default.
        pairs: Pairs that are timed, per case.
        batch_size: Rows of a step.
        seed: Of rows, noise and stops.
        progress: Called with a line of text after each case.

    Returns:
        What `timings.json` holds: `machine`, `versions`, `commit`, `settings`, `limit`, and `cases` with ratio,
        interval, evaluations, medians in seconds and every pair.

    Raises:
        UserError: Fewer than 2 pairs or 1 row; a case that cannot be compared; a `result.json` that cannot be read.
    """
    if pairs < 2:
        raise UserError(f"pairs is {pairs}; an interval over pairs needs at least 2 (30 is usual)")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    output = Path(output)
    read_existing(output / "result.json")
    source = world_parts() if source is None else source
    record: dict[str, Any] = {
        "limit": LIMIT,
        "settings": {
            "pairs": pairs,
            "warm_up": WARM_UP,
            "batch_size": batch_size,
            "seed": seed,
            "parts": source.name,
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "accelerate")
        },
        "commit": find_commit(),
        "cases": [],
    }
    for name, config in (published_cases() if cases is None else cases).items():
        case = _bench_case(name, config, source, pairs=pairs, batch_size=batch_size, seed=seed)
        record["cases"].append(case)
        if progress is not None:
            progress(f"{name}: {case['ratio']:.3f} [{case['low']:.3f}, {case['high']:.3f}]")
    rows = [
        Bench(**{key: case[key] for key in ("id", "ratio", "low", "high", "evaluations")})
        for case in record["cases"]
    ]
    update_result(output / "result.json", Result(bench=rows))
    (output / TIMINGS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def bench_table(record: Mapping[str, Any]) -> Table:
    """The record as a table for the terminal."""
    table = Table(
        title=f"a training step over its network evaluations run bare (limit {record['limit']:.2f})"
    )
    for heading in ("case", "ratio", "95 % interval", "step", "bare", "optimiser", "EMA"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case in record["cases"]:
        seconds = case["seconds"]
        table.add_row(
            case["id"],
            f"{case['ratio']:.3f}",
            f"{case['low']:.3f} to {case['high']:.3f}",
            *(f"{seconds[name]:.4g} s" for name in ("step", "bare", "optimizer", "ema")),
        )
    return table


def _bench_case(
    name: str, config: CaseConfig, source: Parts, *, pairs: int, batch_size: int, seed: int
) -> dict[str, Any]:
    method = make_method(source, config)
    encoding = _encode_prompts(method)
    with tempfile.TemporaryDirectory() as folder:
        timings = time_pairs(method, batch_size=batch_size, pairs=pairs, seed=seed, folder=Path(folder))
    ratio, low, high = timings.ratio()
    return {
        "id": name,
        "ratio": ratio,
        "low": low,
        "high": high,
        "holds": ratio <= LIMIT,
        "evaluations": method.evaluations(batch_size),
        "beyond_evaluations": timings.beyond,
        "seconds": _seconds(timings) | {"ema": _ema_seconds(method), "first_encoding_of_a_prompt": encoding},
        "config": configs.plain(config),
        "pairs": [vars(pair) | {"ratio": pair.ratio} for pair in timings.pairs],
    }


def _seconds(timings: Timings) -> dict[str, float]:
    without = [pair.whole - pair.optimizer for pair in timings.pairs]
    return {
        "step": statistics.median(without),
        "bare": timings.median("bare"),
        "optimizer": timings.median("optimizer"),
    }


def _encode_prompts(method: ReFL | UniFL) -> float:
    """Fills the cache, as it is after the first epoch, and returns the seconds that one prompt takes."""
    rows = [row for rows in method.sources.values() for row in (rows[index] for index in range(len(rows)))]
    prompts = sorted({row.prompt if isinstance(row, Sample) else row for row in rows})
    started = time.perf_counter()
    for prompt in prompts:
        method.generator.encode_prompts([prompt])
    return (time.perf_counter() - started) / len(prompts)


def _ema_seconds(method: ReFL | UniFL) -> float:
    """Median of 30 updates of the moving average."""
    roles, found = method.generator.roles, []
    roles.add("ema")
    for _ in range(30):
        started = time.perf_counter()
        roles.ema_update(0.99)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def describe_machine() -> dict[str, Any]:
    """Processor, threads, memory, and how busy the machine was."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def find_commit() -> str | None:
    """The commit of the source checkout, with "+changes" where it has been edited; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not somebody else's repository around us
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changes else commit
