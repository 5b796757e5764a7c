"""The record of a benchmark: where it ran, what it found, and the two files that keep it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table

from unifl.assembly.bench_timing import WARM_UP
from unifl.errors import UserError
from unifl.metrics.result import Bench, Result, read_existing, update_result

LIMIT = 1.10
"""The most that a step may take, as a multiple of its evaluations run bare."""

TIMINGS = "timings.json"
"""Raw timings, beside `result.json` in the output folder."""


def start_record(output: Path, *, pairs: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Everything but the parts and the cases.

    Args:
        output: Folder of the two files.
        pairs: Pairs that are timed, per case.
        batch_size: Rows of a step.
        seed: Of rows and draws.

    Raises:
        UserError: Fewer than 2 pairs or 1 row; a `result.json` that cannot be read.
    """
    if pairs < 2:
        raise UserError(f"pairs is {pairs}; an interval over pairs needs at least 2 (30 is usual)")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    read_existing(output / "result.json")
    return {
        "limit": LIMIT,
        "settings": {
            "pairs": pairs,
            "warm_up": WARM_UP,
            "batch_size": batch_size,
            "seed": seed,
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "accelerate")
        },
        "commit": find_commit(),
        "cases": [],
    }


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Merge the cases into `result.json`, and write `timings.json`."""
    rows = [
        Bench(**{key: case[key] for key in ("id", "ratio", "low", "high", "evaluations")})
        for case in record["cases"]
    ]
    update_result(output / "result.json", Result(bench=rows))
    (output / TIMINGS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def told(case: Mapping[str, Any]) -> str:
    """A case in one line."""
    return f"{case['id']}: {case['ratio']:.3f} [{case['low']:.3f}, {case['high']:.3f}]"


def bench_table(record: Mapping[str, Any]) -> Table:
    """Steps over their evaluations, as a table for the terminal."""
    table = Table(
        title=f"a training step over its network evaluations run bare (limit {record['limit']:.2f})"
    )
    for heading in ("case", "ratio", "95 % interval", "step", "bare", "optimiser", "EMA"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case in record["cases"]:
        if "bare" in case["seconds"]:
            names = ("step", "bare", "optimizer", "ema")
            table.add_row(*_measured(case), *(f"{case['seconds'][name]:.4g} s" for name in names))
    return table


def script_table(record: Mapping[str, Any]) -> Table:
    """Samples per second over those of a published script, as a table for the terminal."""
    table = Table(title="samples per second, as a multiple of those of a step as in the diffusers script")
    for heading in ("case", "ratio", "95 % interval", "step", "script's", "memory", "script's"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case in record["cases"]:
        if "script" in case["seconds"]:
            seconds = (f"{case['seconds'][name]:.4g} s" for name in ("step", "script"))
            memory = (f"{case['memory'][name] / 1e6:.1f} MB" for name in ("step", "script"))
            table.add_row(*_measured(case), *seconds, *memory)
    return table


def _measured(case: Mapping[str, Any]) -> tuple[str, str, str]:
    return case["id"], f"{case['ratio']:.3f}", f"{case['low']:.3f} to {case['high']:.3f}"


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
