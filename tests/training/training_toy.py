"""A method without pictures that uses everything the loop offers: two updates, scratch, noise, running numbers.

Run as a script it trains, so that tests can start it with `accelerate launch`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unifl.methods.base import MicroBatch, StepOutput
from unifl.models.copies import CopyRoles
from unifl.training.config import OptimizerConfig, TrainingConfig
from unifl.training.loop import train


@dataclass(kw_only=True)
class ToyConfig:
    kind: str = "toy"
    poison_step: int = -1
    poison: str = "loss"


class ToyGenerator:
    """As much of a Generator as training touches: roles, parameters, precision."""

    mixed_precision = "no"

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.roles = CopyRoles({"net": network}, trained=["net"])

    def modules(self) -> dict[str, nn.Module]:
        return {"net": self.network}

    def trainable_parameters(self, role: str = "student") -> dict[str, nn.Parameter]:
        return self.roles.parameters(role)


class Toy:
    """The student moves noise to a row's point; the discriminator tells rows from the student's points."""

    updates = ("student", "discriminator")
    roles = ()

    def __init__(
        self, *, config: ToyConfig | None = None, dtype: torch.dtype = torch.float32, width: int = 16
    ):
        torch.manual_seed(0)
        self.config = config or ToyConfig()
        self.dtype = dtype
        student = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 4)).to(dtype)
        self.generator = ToyGenerator(student)
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        self.discriminator.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.parameters = {
            "student": list(student.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }
        self.modules = {"discriminator": self.discriminator}
        rows = torch.randn(24, 4, dtype=dtype)
        self.sources = {"points": list(rows), "words": [f"word {number}" for number in range(7)]}
        self.seen_words: list[str] = []
        self.running: dict[str, Any] = {"mean": torch.zeros((), dtype=torch.float64), "count": 0}

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        real = torch.stack(batch.data["points"])
        if update == "discriminator":
            return self._discriminator_step(real, batch)
        self.seen_words += batch.data["words"]
        noise = batch.key.normal("start", (4,), dtype=self.dtype)
        points = self.generator.network(noise)
        batch.scratch["points"] = points.detach()
        fit = (points - real).square().mean()
        fool = -0.1 * self.discriminator(points).mean()
        reward = points.detach().mean()
        if batch.key.step + 1 == self.config.poison_step:
            if self.config.poison == "loss":
                fool = fool * float("nan")
            elif self.config.poison == "reward":
                reward = reward * float("inf")
            else:  # the loss stays finite and its gradient does not
                fool = fool + (points.sum() * 0).sqrt()
        self.running["count"] += len(batch.key)
        self.running["mean"] = 0.9 * self.running["mean"] + 0.1 * fit.detach().double()
        picture = points.detach().float().reshape(-1, 1, 2, 2).repeat(1, 3, 4, 4).sigmoid()
        return StepOutput({"fit": fit, "fool": fool}, {"reward/mean": reward}, {"points": picture})

    def _discriminator_step(self, real: torch.Tensor, batch: MicroBatch) -> StepOutput:
        self.discriminator.seen += len(batch.key)
        gap = self.discriminator(batch.scratch["points"]) - self.discriminator(real)
        return StepOutput({"tell": nn.functional.softplus(gap).mean()}, {"gap": gap.detach().mean()})

    def evaluations(self, batch_size: int) -> dict[str, float]:
        return {"net forward+backward": float(batch_size), "discriminator": 3.0 * batch_size}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.running)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running = dict(state)


class Pacing(torch.optim.SGD):
    """Keeps what it learns in its groups, beside its settings, as Prodigy does."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.0) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        for group in self.param_groups:
            group["pace"] = 1.0

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["pace"] *= 0.8
            for parameter in group["params"]:
                parameter.grad *= group["pace"]
        super().step()


def toy_config(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "max_train_steps": 12,
        "train_batch_size": 4,
        "learning_rate": 0.02,
        "checkpointing_steps": 4,
        "ema_decay": 0.9,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "optimizers": {"discriminator": OptimizerConfig(kind="sgd", kwargs={"momentum": 0.9})},
    }
    return TrainingConfig(**(settings | changes))


def save_toy(toy: Toy):
    """The user's files of a toy."""

    def save(folder: Path) -> None:
        torch.save(toy.generator.network.state_dict(), folder / "net.pt")

    return save


def run_folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a run that must not depend on interruptions."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if name != "timings.jsonl"}


def true_peak(method: Any, config: TrainingConfig, folder: Path) -> int:
    """The most bytes that torch's allocator gave out at once for a run, its first two steps, as the profiler sees it.

    What the method held before is not in it.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        steps = train(method, config, folder / "run")
        next(steps), next(steps)
    steps.close()
    profile.export_chrome_trace(str(folder / "trace.json"))
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = sorted((e for e in trace if e.get("name") == "[memory]"), key=lambda event: event["ts"])
    totals = [event["args"]["Total Allocated"] for event in events]
    return max(totals) - totals[0] + events[0]["args"]["Bytes"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--changes", type=json.loads, default={})
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    toy = Toy(dtype=getattr(torch, arguments.dtype))
    changes = arguments.changes
    if "optimizers" in changes:
        changes["optimizers"] = {
            name: OptimizerConfig(**value) for name, value in changes["optimizers"].items()
        }
    for result in train(toy, toy_config(**changes), arguments.folder, resume_from_checkpoint="latest"):
        print(f"step {result.step}", flush=True)


if __name__ == "__main__":
    main()
