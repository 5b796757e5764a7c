"""`unifl bench unifl`: what a training step costs beyond the network evaluations that its equations need.

    from unifl.assembly.bench import bench_unifl
    record = bench_unifl(Path("runs/bench"))

Each training step of the real loop is paired with the same evaluations written by hand (`bench_bare`), on the same
rows, with the same stops and the same graph. The ratio is the median over pairs of the step's time, without its
optimisers, over the bare time. Losses, random draws, loading of rows, checks and records of the loop therefore count
as cost of the step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unifl import config as configs
from unifl.assembly.bench_bare import prepare_bare
from unifl.assembly.bench_cases import CaseConfig, Parts, make_method, published_cases, world_parts
from unifl.assembly.bench_record import LIMIT, start_record, told, write_record
from unifl.assembly.bench_timing import time_pairs
from unifl.data import Sample
from unifl.methods.refl import ReFL
from unifl.methods.unifl import UniFL


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
    output = Path(output)
    record = start_record(output, pairs=pairs, batch_size=batch_size, seed=seed)
    source = world_parts() if source is None else source
    record["settings"]["parts"] = source.name
    for name, config in (published_cases() if cases is None else cases).items():
        case = _bench_case(name, config, source, pairs=pairs, batch_size=batch_size, seed=seed)
        record["cases"].append(case)
        if progress is not None:
            progress(told(case))
    write_record(output, record)
    return record


def _bench_case(
    name: str, config: CaseConfig, source: Parts, *, pairs: int, batch_size: int, seed: int
) -> dict[str, Any]:
    method = make_method(source, config)
    encoding = _encode_prompts(method)
    with tempfile.TemporaryDirectory() as folder:
        timings = time_pairs(
            method,
            lambda batch: prepare_bare(method, batch),
            batch_size=batch_size,
            pairs=pairs,
            seed=seed,
            folder=Path(folder),
        )
    ratio, low, high = timings.ratio()
    return {
        "id": name,
        "ratio": ratio,
        "low": low,
        "high": high,
        "holds": ratio <= LIMIT,
        "evaluations": method.evaluations(batch_size),
        "beyond_evaluations": timings.beyond,
        "seconds": timings.seconds() | {"ema": _ema_seconds(method), "first_encoding_of_a_prompt": encoding},
        "config": configs.plain(config),
        "pairs": timings.as_plain(),
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
