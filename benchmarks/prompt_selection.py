"""Time, memory and correctness of nearest-neighbour compression on synthetic embeddings.

    OMP_NUM_THREADS=2 python benchmarks/prompt_selection.py exact 100000 --data prompts --out result.json
    OMP_NUM_THREADS=2 python benchmarks/prompt_selection.py approximate 1000000 --data prompts --out result.json

Data `prompts` imitates collected prompts: families of near-duplicates of heavy-tailed size (Pareto, exponent 1.2, cut
at 500, so most families are one prompt and a few are large) around ideas, which lie around topics, which share a common
direction; a variant is its idea plus isotropic noise of relative length 0.1 to 0.9, so that cosines within a family run
from 0.55 to 0.99 and the threshold of 0.8 cuts through the families. Data `distinct` is random directions: nothing is
removed, and the pass does the most work. Neither is a measurement on real prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from unifl.assembly.prompts import peak_memory
from unifl.data.selection import compress_approximately, compress_exactly
from unifl.data.selection.similarity import (
    average_nearest_similarity,
    nearest_neighbours,
    scale_to_length_one,
)
from unifl.randomness import permutation

THRESHOLD = 0.8
CHECKED = 10_000


def prompt_like(number: int, width: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    sizes = np.minimum(1 + rng.pareto(1.2, size=number), 500).astype(np.int64)
    family = np.repeat(np.arange(number), sizes)[:number]  # heavy-tailed sizes, as many as make up the number
    num_families = int(family[-1]) + 1
    common = rng.standard_normal(width, dtype=np.float32)
    topics = 0.5 * common + rng.standard_normal((max(number // 200, 1), width), dtype=np.float32)
    ideas = rng.standard_normal((num_families, width), dtype=np.float32)
    ideas += topics[rng.integers(len(topics), size=num_families)]
    ideas /= np.linalg.norm(ideas, axis=1, keepdims=True)
    vectors = ideas[family]
    del ideas
    step = 65_536
    for start in range(0, number, step):
        part = vectors[start : start + step]
        noise = rng.standard_normal(part.shape, dtype=np.float32) / np.float32(width**0.5)
        part += noise * rng.uniform(0.1, 0.9, size=(len(part), 1)).astype(np.float32)
    return torch.from_numpy(vectors)


def distinct(number: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((number, width), dtype=np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["exact", "approximate"])
    parser.add_argument("number", type=int)
    parser.add_argument("--data", choices=["prompts", "distinct"], default="prompts")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what else was going on, for the record")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    load = os.getloadavg()[0]
    make = prompt_like if options.data == "prompts" else distinct
    vectors = make(options.number, options.width, options.seed)
    scale_to_length_one(vectors)
    rows = vectors[permutation(len(vectors), options.seed, "compression")]
    peak_of_data = peak_memory()

    started, busy = time.perf_counter(), time.process_time()
    check = None
    if options.mode == "exact":
        kept = compress_exactly(rows, THRESHOLD)
    else:
        kept, check = compress_approximately(rows, THRESHOLD, seed=options.seed)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    peak = peak_memory()
    print(
        f"{seconds:.1f} s, kept {len(kept)} of {len(rows)}, peak {peak / 2**30:.2f} GiB, {check}", flush=True
    )

    # once more and apart from the pass: a sample of the kept rows against all kept rows, exactly
    survivors = rows[kept]
    similarity = nearest_neighbours(survivors, permutation(len(kept), 12345, "verification")[:CHECKED])[0]
    of_size = {
        "random": average_nearest_similarity(vectors[permutation(len(vectors), 1, "random")[: len(kept)]]),
        "selected": average_nearest_similarity(survivors),
    }

    from unifl.assembly.bench_record import describe_machine, find_commit

    record = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine() | {"load_before": load},
        "versions": {name: version(name) for name in ("torch", "numpy", "faiss-cpu")},
        "commit": find_commit(),
        "note": options.note,
        "settings": {
            "mode": options.mode,
            "number": options.number,
            "data": options.data,
            "width": options.width,
            "seed": options.seed,
            "threshold": THRESHOLD,
        },
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
        "peak_bytes_before_compression": peak_of_data,
        "kept": len(kept),
        "own_check": None if check is None else vars(check),
        "verification": {
            "checked": len(similarity),
            "above_threshold": int((similarity > THRESHOLD).sum()),
            "largest": float(similarity.max()),
        },
        "ans": {
            name: {"value": found.ans, "low": found.low, "high": found.high, "prompts": found.total}
            for name, found in of_size.items()
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: record[key] for key in ("verification", "ans")}, indent=1))


if __name__ == "__main__":
    main()
