"""How far does the checkpoint that an audit keeps hang on the prompts that it looks at?

    python benchmarks/audit_choice.py      # writes benchmarks/results/audit_choice.json, about 20 minutes

Four runs that hack their reward, with seeds that no claim uses, are audited on 1,024 training prompts with the
validation judge alone. Then the rule chooses from subsets of these prompts, again and again, and is compared with what
it chooses from all of them. The gold judge is not asked.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from unifl.assembly.audit import FOLDER, AuditRequest, audit_run
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.assembly.sources import prompts_of, source
from unifl.evaluation.audit_look import HELD_OUT, PATH_KL, REWARD
from unifl.evaluation.overoptimisation import Evidence, decide, standardised
from unifl.world.scenes import sample_prompts

RESULT = Path(__file__).parent / "results" / "audit_choice.json"
PROMPTS, PROMPTS_SEED = 1024, 4242
SIZES, SUBSETS = (64, 128, 256, 512), 60
IN_FOUR = (
    "num_steps=4",
    "stop=[0,2]",
    "spacing=trailing",
    "guidance={kind: fixed, scale: 3.0}",
    "margin=100",
)
ALIKE = (
    *(f"method.{one}" for one in IN_FOUR), "training.train_batch_size=16", "training.lr_scheduler=constant",
    "training.checkpoints_total_limit=null", "sampling={num_steps: 4, guidance: 3.0, spacing: trailing}",
    "validation=null",
)  # fmt: skip
RUNS = {
    "detail": ("training.seed=101", "training.learning_rate=1e-3", "training.max_train_steps=80"),
    "color": ("training.seed=102", "training.learning_rate=1e-3", "training.max_train_steps=80"),
    "lighting": ("training.seed=104", "training.learning_rate=1e-3", "training.max_train_steps=80"),
    "global": ("training.seed=106", "training.learning_rate=2e-3", "training.max_train_steps=120"),
}


def main(place: Path) -> None:
    """Train and audit what is not there yet, and write the shares."""
    torch.set_num_threads(1)
    place.mkdir(parents=True, exist_ok=True)
    prompts = place / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in training_prompts()), encoding="utf-8")
    found = {name: shares(audited(place / name, name, changes, prompts)) for name, changes in RUNS.items()}
    other = {str(size): 1 - float(np.mean([run[str(size)] for run in found.values()])) for size in SIZES}
    record = {"prompts": PROMPTS, "subsets": SUBSETS, "same": found, "another": other}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("share of choices that fall on another checkpoint, by prompts:", other)


def training_prompts() -> list[str]:
    """Such as training draws, without those that the audit looks at by default."""
    known = set(prompts_of(source("world:validation", name="validation"), "validation"))
    drawn = dict.fromkeys(sample_prompts(2400, seed=PROMPTS_SEED, held_out=False))
    return [prompt for prompt in drawn if prompt not in known][:PROMPTS]


def audited(run: Path, reward: str, changes: tuple[str, ...], prompts: Path) -> Evidence:
    """What the audit of one run goes by; the run is trained if it is not there."""
    length = int(changes[-1].rpartition("=")[2])
    every = f"training.checkpointing_steps={length // 8}"
    named = (f"rewards.global=world:rewards/{reward}", f"output_dir={run}")
    run_recipe(load_recipe("refl", [*ALIKE, *changes, every, *named]))
    audit_run(run, AuditRequest(prompts=prompts, num_prompts=PROMPTS, samples=1, batch_size=32))
    return evidence(run / FOLDER / "looks")


def evidence(looks: Path) -> Evidence:
    """Read what an audit of one picture per prompt has kept."""
    checkpoints = sorted(looks.glob("checkpoint-*.npz"), key=lambda file: int(file.stem.rpartition("-")[2]))
    numbers = [numbers_of(file) for file in (looks / "start.npz", *checkpoints)]
    reward, held_out = (
        standardised([{name: one[name] for name in one if name.startswith(kind)} for one in numbers], 1)
        for kind in (REWARD, HELD_OUT)
    )
    drift = np.sqrt([one[PATH_KL].mean() for one in numbers])
    return Evidence(("the start", *(file.stem for file in checkpoints)), reward, held_out, drift)


def numbers_of(file: Path) -> dict[str, np.ndarray]:
    """Of each picture, by name."""
    with np.load(file, allow_pickle=False) as data:
        return {name.removeprefix("number:"): data[name] for name in data.files if name.startswith("number:")}


def shares(whole: Evidence) -> dict[str, float]:
    """By the size of a subset, how often it keeps what all prompts keep."""
    of_all = decide(whole).keep
    rng = np.random.default_rng(0)
    found = {}
    for size in SIZES:
        kept = []
        for _ in range(SUBSETS):
            some = rng.permutation(whole.held_out.shape[1])[:size]
            part = replace(whole, reward=whole.reward[:, some], held_out=whole.held_out[:, some])
            kept.append(decide(part).keep)
        found[str(size)] = float(np.mean(np.array(kept) == of_all))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/audit-choice"))
