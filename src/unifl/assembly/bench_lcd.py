"""`unifl bench rg-lcd`: what a step of latent consistency distillation costs, and beside the script of diffusers.

    from unifl.assembly.bench_lcd import bench_rg_lcd
    record = bench_rg_lcd(Path("runs/bench-rg-lcd"))

Two questions. What a step costs beyond its evaluations: as in `bench`, with `bench_bare_lcd` as the bare side. And
what the cache of encoded pictures and the one batch for both halves of the teacher bring: whole steps, optimiser and
average included, beside whole steps laid out as in the example script of diffusers (`bench_lcm_script`), on the same
pipeline and rows. All weights of the student train, it is told its guidance, and its target is the moving average.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unifl import config as configs
from unifl.assembly.bench_bare_lcd import prepare_bare_lcd
from unifl.assembly.bench_cases import FirstRows, Parts, world_parts
from unifl.assembly.bench_lcm_script import LCMScript
from unifl.assembly.bench_record import LIMIT, start_record, told, write_record
from unifl.assembly.bench_timing import Timings, median_interval, time_against, time_pairs
from unifl.data.encode import encode_source
from unifl.data.encoded import EncodedPictures
from unifl.errors import UserError
from unifl.methods.base import MicroBatch
from unifl.methods.guiding import GuidingConfig
from unifl.methods.lcd import LCD
from unifl.methods.lcd_config import LCDConfig
from unifl.models.load import FullTraining, make_generator
from unifl.randomness import row_order

AGAINST = "lcd-against-diffusers"
"""Id of the comparison with the script; its ratio is samples per second of ours over theirs."""

FASTER = 1.3
"""The least that this ratio should be, and peak memory no more."""

PICTURES = "images"
"""The source of pictures with captions."""


def distillation_cases() -> dict[str, LCDConfig]:
    """LCD, and RG-LCD with one reward that reads the pictures of a quarter of the usual 16 rows."""
    return {
        "lcd": LCDConfig(),
        "rg-lcd": LCDConfig(rewards=GuidingConfig(weights={"global": 1.0}, batch_size=4)),
    }


def bench_rg_lcd(
    output: str | Path,
    *,
    source: Parts | None = None,
    cases: Mapping[str, LCDConfig] | None = None,
    pairs: int = 30,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Benchmark latent consistency distillation on the CPU.

    Args:
        output: Folder for `result.json` (merged into one that is there) and `timings.json`.
        source: Model, feedback and data; the embedded world by default.
        cases: Method configs by name; those of `distillation_cases` by default. The comparison with the script always
            takes LCD's defaults.
        pairs: Pairs that are timed, per case.
        batch_size: Rows of a step.
        seed: Of rows, noise, times and guidance.
        progress: Called with a line of text after each case.

    Returns:
        What `timings.json` holds, see `bench_unifl`. The comparison has `memory` in bytes for `step` and `script`,
        and its pairs have the seconds of both.

    Raises:
        UserError: Fewer than 2 pairs or 1 row; a case that cannot be compared; a `result.json` that cannot be read.
    """
    output = Path(output)
    record = start_record(output, pairs=pairs, batch_size=batch_size, seed=seed)
    source = world_parts() if source is None else source
    record["settings"]["parts"] = source.name
    settings = {"batch_size": batch_size, "pairs": pairs, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        rows = _encoded(source, Path(folder) / "rows")
        works: dict[str, Callable[..., dict[str, Any]]] = {
            name: partial(_bench_bare, name, config)
            for name, config in (distillation_cases() if cases is None else cases).items()
        }
        for name, work in (works | {AGAINST: _bench_script}).items():
            case = work(source, rows, Path(folder) / name, settings)
            record["cases"].append(case)
            if progress is not None:
                progress(told(case))
    write_record(output, record)
    return record


def make_lcd(parts: Parts, config: LCDConfig, rows: EncodedPictures) -> LCD:
    """The method on a fresh pipeline, all weights of whose UNet train."""
    generator = make_generator(
        parts.pipeline(), train=FullTraining(embed_guidance=True), roles=(), source=parts.name
    )
    return LCD(generator, config, rewards=parts.rewards, sources={PICTURES: rows})


def beside_script(script: LCMScript, parts: Parts, batch: MicroBatch) -> Callable[[], None]:
    """A step of the script on the rows of a micro-batch; reading their pictures is not timed."""
    pictures, key = FirstRows(parts.sources[PICTURES]), batch.key
    rows = [pictures[row_order(len(pictures), key.seed, f"rows/{PICTURES}", index)] for index in key.indices]
    prompts = [row.prompt for row in rows]
    if prompts != batch.data[PICTURES].prompts:
        raise UserError("the two sides would see other rows; the order of rows has changed, so follow it")
    stacked = torch.stack([row.image for row in rows]) * 2 - 1
    return lambda: script.step(stacked, prompts)


def _encoded(parts: Parts, folder: Path) -> EncodedPictures:
    """The rows with their embeddings, as `unifl` reads them in training."""
    generator = make_generator(parts.pipeline(), roles=(), source=parts.name)
    return encode_source(generator, FirstRows(parts.sources[PICTURES]), folder, with_text=True)


def _bench_bare(
    name: str, config: LCDConfig, parts: Parts, rows: EncodedPictures, folder: Path, settings: dict[str, int]
) -> dict[str, Any]:
    method = make_lcd(parts, config, rows)
    timings = time_pairs(method, partial(prepare_bare_lcd, method), folder=folder, **settings)
    return _case(name, method, timings.ratio(), settings["batch_size"]) | {
        "holds": timings.ratio()[0] <= LIMIT,
        "beyond_evaluations": timings.beyond,
        "seconds": timings.seconds(),
        "pairs": timings.as_plain(),
    }


def _bench_script(
    parts: Parts, rows: EncodedPictures, folder: Path, settings: dict[str, int]
) -> dict[str, Any]:
    method = make_lcd(parts, LCDConfig(), rows)
    low, high = method.config.guidance_range
    script = LCMScript(parts.pipeline(), grid=method.config.grid_steps, scales=(low - 1, high - 1))
    timings, (ours, theirs) = time_against(
        method,
        partial(beside_script, script, parts),
        known=(_held(method), script.held()),
        folder=folder,
        **settings,
    )
    pairs = _as_pairs(timings)
    found = median_interval([pair["ratio"] for pair in pairs])
    middle = {name: median_interval([pair[name] for pair in pairs])[0] for name in ("step", "script")}
    return _case(AGAINST, method, found, settings["batch_size"]) | {
        "holds": found[0] >= FASTER and ours <= theirs,
        "seconds": middle,
        "samples_per_second": {name: settings["batch_size"] / seconds for name, seconds in middle.items()},
        "memory": {"step": ours, "script": theirs},
        "pairs": pairs,
    }


def _case(name: str, method: LCD, found: tuple[float, float, float], batch_size: int) -> dict[str, Any]:
    return {
        "id": name,
        **dict(zip(("ratio", "low", "high"), found, strict=True)),
        "evaluations": method.evaluations(batch_size),
        "config": configs.plain(method.config),
    }


def _as_pairs(timings: Timings) -> list[dict[str, float]]:
    """Whole steps of both, with the samples per second of ours over theirs."""
    return [
        {"step": pair.whole, "script": pair.bare, "ratio": pair.bare / pair.whole} for pair in timings.pairs
    ]


def _held(method: LCD) -> list[torch.Tensor]:
    """Every tensor of the networks: the pipeline's, also those that training has no more use for, and the copies."""
    generator = method.generator
    modules = [*generator.modules().values()]
    modules += [generator.roles.module("unet", role) for role in method.roles]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
