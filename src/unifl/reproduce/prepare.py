"""What trainings need beside the package, made once: settings of the baseline, lists of prompts, a critic."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from unifl.assembly.proxy import ProxyRequest, fit_proxy
from unifl.data.selection import (
    SelectionConfig,
    average_nearest_similarity,
    load_text_encoder,
    select_prompts,
)
from unifl.data.selection.similarity import scale_to_length_one
from unifl.disk import write_atomically
from unifl.feedback.latent_proxy_fit import ProxyFitConfig
from unifl.models import load_generator
from unifl.randomness import permutation
from unifl.reproduce.unknown import fit_critic
from unifl.world.assets import PIPELINE, baselines, load_judge, load_source
from unifl.world.baselines import as_json, best_setting
from unifl.world.preference_drawing import draw_preferences
from unifl.world.scenes import sample_prompts

BASELINE_PROMPTS, BASELINE_SEED = 200, 51
"""Training prompts on which the validation judge chooses how the packaged model is sampled."""
PROXY_STEPS, LONG_PROXY_STEPS = 200, 1000
NUM_SELECTED, SIMILARITY = 128, 0.8
"""Prompts of each list, and the largest cosine that two actively selected ones may have."""


def prepare(name: str, folder: Path, runs: Path) -> None:
    """Make one of these if it is not there yet; of several processes, one makes it and the others wait.

    Args:
        name: See `PREPARATIONS`.
        folder: Gets small files, which are kept.
        runs: Gets large ones, and work under way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs.mkdir(parents=True, exist_ok=True)
    with FileLock(runs / f".{name}.lock"):
        PREPARATIONS[name](folder, runs)


def recorded_baseline(folder: Path, num_steps: int) -> dict[str, Any]:
    """Guidance and spacing of the packaged model at a number of steps, chosen by the validation judge."""
    best: dict[str, Any] = json.loads((folder / "baselines.json").read_text())[str(num_steps)]["best"]
    return best


def _baselines(folder: Path, runs: Path, *, steps: Sequence[int] = (1, 2, 8)) -> None:
    """The packaged record has 4 and 20 steps; the others are searched in the same way."""
    path = folder / "baselines.json"
    record = json.loads(path.read_text()) if path.is_file() else baselines()
    missing = [number for number in steps if str(number) not in record]
    if missing:
        generator, judge = load_generator(PIPELINE, roles=()), load_judge("validation")
        prompts = sample_prompts(BASELINE_PROMPTS, seed=BASELINE_SEED, held_out=False)
        for number in missing:
            found = best_setting(generator, judge, prompts, num_steps=number, seed=BASELINE_SEED)
            record[str(number)] = as_json(*found)
    _write(path, record)


def _critic(folder: Path, runs: Path) -> None:
    fit_critic(runs / "unknown-critic")


def _proxy(folder: Path, runs: Path, *, name: str = "proxy", steps: int = PROXY_STEPS) -> None:
    """A latent proxy that knows captions and no expert; the same for all training seeds."""
    if not (runs / name / "config.json").is_file():
        fit_proxy(
            ProxyRequest(
                model="world:pipeline",
                data="world:scenes",
                folder=runs / name,
                cache=runs / "proxy-cache",
                tower="resnet",
                width=32,
                text="hashed",
                fit=ProxyFitConfig(steps=steps),
            )
        )


def _preferences(folder: Path, runs: Path) -> None:
    """Pictures of the packaged model, compared by scripted people; the same for all training seeds."""
    if not (runs / "preferences" / "metadata.jsonl").is_file():
        draw_preferences(runs / "preferences")


def _prompts(folder: Path, runs: Path) -> None:
    """As many training prompts chosen actively as at random, and how alike those of each list are."""
    if (folder / "prompts.json").is_file():
        return
    pool: list[str] = load_source("prompts")
    vectors = load_text_encoder(PIPELINE)(pool).float()
    chosen = select_prompts(pool, vectors, SelectionConfig(number=NUM_SELECTED, similarity=SIMILARITY))
    lists = {
        "active": chosen.indices,
        "random": permutation(len(pool), 0, "random prompts")[:NUM_SELECTED].tolist(),
    }
    scale_to_length_one(vectors)
    record: dict[str, Any] = {"number": NUM_SELECTED, "pool": len(pool), "counts": vars(chosen.counts)}
    for name, indices in lists.items():
        record[name] = average_nearest_similarity(vectors[indices]).ans
        write_atomically(folder / f"{name}.txt", ("\n".join(pool[i] for i in indices) + "\n").encode())
    _write(folder / "prompts.json", record)


def _write(path: Path, record: object) -> None:
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


PREPARATIONS: dict[str, Callable[[Path, Path], None]] = {
    "baselines": _baselines,
    "baselines-50": partial(_baselines, steps=(1, 2, 8, 50)),
    "critic": _critic,
    "preferences": _preferences,
    "prompts": _prompts,
    "proxy": _proxy,
    "proxy-long": partial(_proxy, name="proxy-long", steps=LONG_PROXY_STEPS),
}
