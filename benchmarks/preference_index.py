"""Time and memory of indexing, filtering and reporting on a million pairs of Pick-a-Pic's columns.

    OMP_NUM_THREADS=1 python benchmarks/preference_index.py --out results/preferences/index-1000000.json

makes parquet files with as many rows as Pick-a-Pic v2 has, about (17 per prompt, two pictures of random bytes per row,
uids of 36 letters), in a temporary folder that it removes again; a child process then does what
`unifl preferences filter` and `report` do, on one core, and its time and largest resident memory are written down.
Labels are drawn from a latent quality of every picture with noise, 12 % are ties and 5 % missing. None of this is a
measurement on the real data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILES = 16
PER_PROMPT = 17
PICTURES_PER_PROMPT = 14
GROUP = 1000  # rows per row group
SLICE = 10_000


def write_files(folder: Path, number: int, picture_bytes: int, seed: int) -> int:
    """Write the files; returns their bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    per_file = -(-number // FILES)
    for file in range(FILES):
        rows = range(file * per_file, min((file + 1) * per_file, number))
        path = folder / f"train-{file:05d}-of-{FILES:05d}.parquet"
        writer = None
        for start in range(rows.start, rows.stop, SLICE):
            columns = make_rows(range(start, min(start + SLICE, rows.stop)), picture_bytes, seed)
            table = pa.table(columns)
            writer = writer or parquet.ParquetWriter(path, table.schema, compression="none")
            writer.write_table(table, row_group_size=GROUP)
        assert writer is not None
        writer.close()
    return sum(path.stat().st_size for path in folder.iterdir())


def make_rows(rows: range, picture_bytes: int, seed: int) -> dict[str, list | np.ndarray]:
    rng = np.random.default_rng((seed, rows.start))
    prompt = np.arange(rows.start, rows.stop) // PER_PROMPT
    shown = prompt[:, None] * PICTURES_PER_PROMPT + np.sort(
        np.argsort(rng.random((len(rows), PICTURES_PER_PROMPT)), axis=1)[:, :2], axis=1
    )
    quality = quality_of(shown)
    gap = quality[:, 0] - quality[:, 1] + 0.5 * rng.standard_normal(len(rows))
    first = np.where(np.abs(gap) < 0.18, 0.5, (gap > 0).astype(np.float64))
    missing = rng.random(len(rows)) < 0.05
    return {
        "caption": [
            f"prompt number {p}, a picture of something in the style of somebody, detailed" for p in prompt
        ],
        "jpg_0": [rng.bytes(picture_bytes) for _ in rows],
        "jpg_1": [rng.bytes(picture_bytes) for _ in rows],
        "label_0": np.where(missing, np.nan, first),
        "label_1": np.where(missing, np.nan, 1 - first),
        "has_label": ~missing,
        "are_different": np.ones(len(rows), bool),
        "image_0_uid": [uid(picture) for picture in shown[:, 0].tolist()],
        "image_1_uid": [uid(picture) for picture in shown[:, 1].tolist()],
        "ranking_id": np.arange(rows.start, rows.stop),
        "user_id": rng.integers(5000, size=len(rows)),
    }


def quality_of(picture: np.ndarray) -> np.ndarray:
    """A fixed number per picture, nearly normal: from the bits of its hashed number."""
    mixed = (picture.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    parts = [(mixed >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    return (sum(part.astype(np.float64) for part in parts) / 65536 - 2) * np.sqrt(3.0)


def uid(picture: int) -> str:
    digits = f"{picture * 0x9E3779B97F4A7C15 % 2**128:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def peak_memory() -> int:
    """Bytes, on Linux; `getrusage` would count what the parent held when it started this process."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def measure(folder: Path, out: Path) -> None:
    """In the child: read, report, filter, write."""
    from unifl.data.preferences import Filters, read_preferences, report_pairs, select, write_pairs

    seconds, before = {}, peak_memory()
    started, busy = time.perf_counter(), time.process_time()

    def lap(name: str) -> None:
        seconds[name] = time.perf_counter() - started - sum(seconds.values())

    index = read_preferences(folder)
    lap("index")
    report = report_pairs(index)
    lap("report")
    kept, steps = select(index, Filters(absolute_winners=True, latest_losers=True), allow_duplicates=False)
    lap("filter")
    write_pairs(kept, folder.parent / "kept.parquet")
    lap("write")
    record = {
        "seconds": seconds | {"total": time.perf_counter() - started},
        "cpu_seconds": time.process_time() - busy,
        "peak_bytes": peak_memory(),
        "peak_bytes_after_imports": before,
        "steps": {step.name: step.kept for step in steps},
        "report": {
            name: getattr(report, name) for name in ("rows", "labelled", "ties", "prompts", "pictures")
        },
        "absolute_winners": vars(report.winners),
        "contradictions": vars(report.contradictions),
    }
    out.write_text(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=1_000_000)
    parser.add_argument("--picture-bytes", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what else was going on, for the record")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        return measure(options.measure, options.out)

    from unifl.assembly.bench_record import describe_machine, find_commit

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="preference-index-") as temporary:
        folder, result = Path(temporary) / "data", Path(temporary) / "result.json"
        folder.mkdir()
        num_bytes = write_files(folder, options.number, options.picture_bytes, options.seed)
        print(f"wrote {num_bytes / 2**30:.2f} GiB", flush=True)
        command = [sys.executable, __file__, "--measure", str(folder), "--out", str(result)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = json.loads(result.read_text())
    record = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine() | {"load_before": load},
        "versions": {name: version(name) for name in ("numpy", "pyarrow", "torch")},
        "commit": find_commit(),
        "note": options.note,
        "settings": {
            "number": options.number,
            "picture_bytes": options.picture_bytes,
            "files": FILES,
            "rows_per_group": GROUP,
            "seed": options.seed,
        },
        "data_bytes": num_bytes,
    } | found
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {key: record[key] for key in ("seconds", "peak_bytes", "steps", "absolute_winners")}, indent=1
        )
    )


if __name__ == "__main__":
    main()
