"""`unifl bench preference`: what a step of preference optimisation costs, and beside the script of diffusers.

    from unifl.assembly.bench_preference import bench_preference
    record = bench_preference(Path("runs/bench-preference"))

Two questions, as in `bench_lcd`. What a step of DPO in the latent space and in the embedding space costs beyond its
evaluations; and what it brings that pictures and captions are encoded once: whole steps, optimiser included, beside
whole steps laid out as in the example script of diffusers (`bench_dpo_script`), on the same pipeline and pairs. A LoRA
trains.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unifl import config as configs
from unifl.assembly.bench_bare import arguments_of
from unifl.assembly.bench_cases import FirstRows, Parts, world_parts
from unifl.assembly.bench_dpo_script import DPOScript
from unifl.assembly.bench_record import LIMIT, start_record, told, write_record
from unifl.assembly.bench_timing import median_interval, time_against, time_pairs
from unifl.data.encode import encode_source
from unifl.data.encoded import EncodedPictures
from unifl.data.pairs import EncodedPair
from unifl.errors import UserError
from unifl.methods.base import MicroBatch
from unifl.methods.ncp import NCP, NCPConfig
from unifl.methods.preference import Preference, PreferenceConfig
from unifl.models.load import make_generator
from unifl.models.lora import LoraTraining
from unifl.models.roles import STUDENT
from unifl.randomness import row_order

AGAINST = "dpo-against-diffusers"
"""Id of the comparison with the script; its ratio is pairs per second of ours over theirs."""
FASTER = 1.5
"""The least that this ratio should be, and peak memory no more."""
PAIRS = "pairs"
RANK = 16

Case = dict[str, Any]


class Neighbours:
    """Pairs of neighbouring rows of a cache; which of two pictures is better makes no difference to the time."""

    def __init__(self, rows: EncodedPictures) -> None:
        self._rows = rows

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._rows) // 2

    def __getitem__(self, index: int) -> EncodedPair:
        """Both read from their file, as in training."""
        win, lose = self._rows[2 * index], self._rows[2 * index + 1]
        return EncodedPair(win.prompt, win, lose)


def preference_cases() -> dict[str, PreferenceConfig]:
    """DPO in both spaces."""
    return {"dpo": PreferenceConfig(), "ncp-dpo": PreferenceConfig(space=NCPConfig())}


def bench_preference(
    output: str | Path,
    *,
    source: Parts | None = None,
    pairs: int = 30,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Benchmark preference optimisation on the CPU.

    Args:
        output: Folder for `result.json` (merged into one that is there) and `timings.json`.
        source: Model and pictures; the embedded world by default.
        pairs: Pairs of timings, per case.
        batch_size: Preference pairs of a step.
        seed: Of rows, noise and times.
        progress: Called with a line of text after each case.

    Returns:
        What `timings.json` holds, see `bench_lcd.bench_rg_lcd`.

    Raises:
        UserError: Fewer than 2 pairs of timings or 1 row; a `result.json` that cannot be read.
    """
    output = Path(output)
    record = start_record(output, pairs=pairs, batch_size=batch_size, seed=seed)
    source = world_parts() if source is None else source
    record["settings"]["parts"] = source.name
    settings = {"batch_size": batch_size, "pairs": pairs, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        generator = make_generator(source.pipeline(), roles=(), source=source.name)
        rows = encode_source(
            generator, FirstRows(source.sources["images"]), Path(folder) / "rows", with_text=True
        )
        works: dict[str, Callable[..., Case]] = {
            name: partial(_bench_bare, name, config) for name, config in preference_cases().items()
        }
        for name, work in (works | {AGAINST: _bench_script}).items():
            case = work(source, rows, Path(folder) / name, settings)
            record["cases"].append(case)
            if progress is not None:
                progress(told(case))
    write_record(output, record)
    return record


def make_preference(parts: Parts, config: PreferenceConfig, rows: EncodedPictures) -> Preference:
    """The method on a fresh pipeline, with a LoRA on its UNet."""
    generator = make_generator(parts.pipeline(), train=LoraTraining(rank=RANK), roles=(), source=parts.name)
    return Preference(generator, config, sources={PAIRS: Neighbours(rows)})


@dataclass
class BareDPO:
    """The evaluations of one step on b pairs: reference, student with a graph and, in the embedding space, the encoder.

    Attributes:
        method: Whose networks are evaluated, under its roles.
        x0: Latents, winners first (2b, c, h, w).
        noise: The same shape.
        weights: (alpha, sigma) of the states, each (2b, 1, 1, 1).
        index: Timesteps (2b,).
        told: Arguments of the UNet beside state and timestep.
    """

    method: Preference
    x0: Tensor
    noise: Tensor
    weights: tuple[Tensor, Tensor]
    index: Tensor
    told: dict[str, Any]

    def __call__(self) -> None:
        """Run it; gradients are dropped at the end."""
        roles = self.method.generator.roles
        alpha, sigma = self.weights
        x_t = alpha * self.x0 + sigma * self.noise
        encodes = isinstance(self.method.surrogate.space, NCP)
        with torch.no_grad(), roles.use("reference"):
            said = self._unet("reference")(x_t, self.index, **self.told)[0]
            if encodes:
                self._encode(x_t + 1e-3 * self.noise), self._encode(x_t + 1e-3 * said)
        found = self._unet(STUDENT)(x_t, self.index, **self.told)[0]
        if encodes:
            with roles.use("reference"):
                found = self._encode(x_t + 1e-3 * found)
        found.square().mean().backward()
        for parameter in self.method.parameters["student"]:
            parameter.grad = None

    def _unet(self, role: str) -> nn.Module:
        return self.method.generator.roles.module("unet", role)

    def _encode(self, x: Tensor) -> Tensor:
        """The down path, by straight calls."""
        unet: Any = self._unet("reference")
        embedding = unet.time_embedding(unet.time_proj(self.index - 1).to(x.dtype))
        x = unet.conv_in(x)
        for block in unet.down_blocks:
            told = {"encoder_hidden_states": self.told["encoder_hidden_states"]}
            x, _ = block(x, embedding, **(told if getattr(block, "has_cross_attention", False) else {}))
        return x


def prepare_bare_dpo(method: Preference, batch: MicroBatch) -> BareDPO:
    """The bare counterpart of a step on these pairs; what was encoded is prepared before the clock starts."""
    generator, rows = method.generator, batch.data[PAIRS]
    x0 = torch.stack([row.win.mean for row in rows] + [row.lose.mean for row in rows])
    embeds = [row.win.embeds for row in rows]
    assert all(embed is not None for embed in embeds)
    cond = generator.encode_prompts([row.prompt for row in rows]).repeat(2)
    points = generator.num_train_timesteps
    lowest = round(method.surrogate.space.earliest * points) or 1
    index = (batch.key.integers("surrogate/time", lowest, points + 1) - 1).repeat(2)
    abar = generator.pipeline.scheduler.alphas_cumprod[index][:, None, None, None]
    return BareDPO(
        method=method,
        x0=x0,
        noise=torch.randn_like(x0),
        weights=(abar.sqrt(), (1 - abar).sqrt()),
        index=index,
        told=arguments_of(generator, cond) | {"return_dict": False},
    )


def beside_script(script: DPOScript, parts: Parts, batch: MicroBatch) -> Callable[[], None]:
    """A step of the script on the pairs of a micro-batch; reading their pictures is not timed."""
    pictures, key = FirstRows(parts.sources["images"]), batch.key
    rows = [row_order(len(pictures) // 2, key.seed, f"rows/{PAIRS}", index) for index in key.indices]
    prompts = [pictures[2 * row].prompt for row in rows]
    if prompts != [pair.prompt for pair in batch.data[PAIRS]]:
        raise UserError("the two sides would see other rows; the order of rows has changed, so follow it")
    sides = [torch.stack([pictures[2 * row + side].image for row in rows]) * 2 - 1 for side in (0, 1)]
    return lambda: script.step(torch.cat(sides), prompts)


def _bench_bare(
    name: str,
    config: PreferenceConfig,
    parts: Parts,
    rows: EncodedPictures,
    folder: Path,
    settings: dict[str, int],
) -> Case:
    method = make_preference(parts, config, rows)
    timings = time_pairs(method, partial(prepare_bare_dpo, method), folder=folder, **settings)
    return _case(name, method, timings.ratio(), settings["batch_size"]) | {
        "holds": timings.ratio()[0] <= LIMIT,
        "beyond_evaluations": timings.beyond,
        "seconds": timings.seconds(),
        "pairs": timings.as_plain(),
    }


def _bench_script(parts: Parts, rows: EncodedPictures, folder: Path, settings: dict[str, int]) -> Case:
    method = make_preference(parts, PreferenceConfig(), rows)
    script = DPOScript(parts.pipeline(), rank=RANK)
    timings, (ours, theirs) = time_against(
        method,
        partial(beside_script, script, parts),
        known=(_held(method), script.held()),
        folder=folder,
        **settings,
    )
    pairs = [
        {"step": pair.whole, "script": pair.bare, "ratio": pair.bare / pair.whole} for pair in timings.pairs
    ]
    found = median_interval([pair["ratio"] for pair in pairs])
    middle = {name: median_interval([pair[name] for pair in pairs])[0] for name in ("step", "script")}
    return _case(AGAINST, method, found, settings["batch_size"]) | {
        "holds": found[0] >= FASTER and ours <= theirs,
        "seconds": middle,
        "samples_per_second": {name: settings["batch_size"] / seconds for name, seconds in middle.items()},
        "memory": {"step": ours, "script": theirs},
        "pairs": pairs,
    }


def _case(name: str, method: Preference, found: tuple[float, float, float], batch_size: int) -> Case:
    return {
        "id": name,
        **dict(zip(("ratio", "low", "high"), found, strict=True)),
        "evaluations": method.evaluations(batch_size),
        "config": configs.plain(method.config),
    }


def _held(method: Preference) -> list[Tensor]:
    """Every tensor of the pipeline's networks, also of those that training has no more use for."""
    modules = method.generator.modules().values()
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
