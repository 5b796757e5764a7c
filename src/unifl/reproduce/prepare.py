"""What trainings need beside the package, made once: settings of the baseline, lists of prompts, a critic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unifl.reproduce.unknown import fit_critic

BASELINE_PROMPTS, BASELINE_SEED = 200, 51
"""Training prompts on which the validation judge chooses how the packaged model is sampled."""


def prepare(name: str, folder: Path, runs: Path) -> None:
    """Make one of these if it is not there yet.

    Args:
        name: See `PREPARATIONS`.
        folder: Gets small files, which are kept.
        runs: Gets large ones, and work under way.
    """
    PREPARATIONS[name](folder, runs)


def recorded_baseline(folder: Path, num_steps: int) -> dict[str, Any]:
    """Guidance and spacing of the packaged model at a number of steps, chosen by the validation judge."""
    best: dict[str, Any] = json.loads((folder / "baselines.json").read_text())[str(num_steps)]["best"]
    return best


def _baselines(folder: Path, runs: Path) -> None:
    """The packaged record has 4 and 20 steps; the others are searched in the same way."""
    from unifl.models import load_generator
    from unifl.world.assets import PIPELINE, baselines, load_judge
    from unifl.world.baselines import as_json, best_setting
    from unifl.world.scenes import sample_prompts

    path = folder / "baselines.json"
    record = json.loads(path.read_text()) if path.is_file() else baselines()
    missing = [number for number in (1, 2, 8) if str(number) not in record]
    if missing:
        generator, judge = load_generator(PIPELINE, roles=()), load_judge("validation")
        prompts = sample_prompts(BASELINE_PROMPTS, seed=BASELINE_SEED, held_out=False)
        for number in missing:
            found = best_setting(generator, judge, prompts, num_steps=number, seed=BASELINE_SEED)
            record[str(number)] = as_json(*found)
    _write(path, record)


def _critic(folder: Path, runs: Path) -> None:
    fit_critic(runs / "unknown-critic")


def _prompts(folder: Path, runs: Path) -> None:
    raise NotImplementedError


def _write(path: Path, record: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


PREPARATIONS: dict[str, Callable[[Path, Path], None]] = {
    "baselines": _baselines,
    "critic": _critic,
    "prompts": _prompts,
}
