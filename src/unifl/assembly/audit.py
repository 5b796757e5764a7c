"""The over-optimisation audit of a run: its checkpoints on the same prompts and noise, one rule, one page.

Each checkpoint's pictures and numbers are a file of `audit/looks/`, so that an audit that was interrupted goes on, and
one that is asked again after further training draws only what is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unifl import config as configs
from unifl.assembly import sources
from unifl.assembly.audit_candidates import Candidate, candidates, open_start, run_recipe_of
from unifl.assembly.audit_judges import Scorers, in_world, scorers_of
from unifl.assembly.device import chosen_device
from unifl.assembly.model_hash import process_sha256, weights_sha256
from unifl.assembly.open_model import open_model
from unifl.assembly.part import Part
from unifl.assembly.recipe import Recipe
from unifl.data import load_prompts
from unifl.disk import require_writable
from unifl.errors import UserError
from unifl.evaluation.audit_findings import AuditFindings, find
from unifl.evaluation.audit_look import HELD_OUT, PATH_KL, REWARD, AuditLook, take_look
from unifl.evaluation.audit_page import STRIP, write_audit
from unifl.evaluation.overoptimisation import start_units
from unifl.evaluation.path_kl import path_kl
from unifl.guard import training_active
from unifl.models import Generator
from unifl.sampling import sample

_SEED = 9  # of the noise: not that of training's monitor (8) or validation (7)
_FORMAT = 2
_KL_STEPS = 8
FOLDER = "audit"
_WORLD_PROMPTS = "world:validation"

Progress = Callable[[str, int, int], None]
"""Called with (what is drawn, pictures done, pictures in all, those of other checkpoints included)."""


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """How to audit a run.

    Attributes:
        judges: Held-out judges by name, a `Part` for one with arguments; none takes those of the run's recipe.
        prompts: A file of prompts; None takes those of the recipe's validation or monitor.
        num_prompts: The first so many.
        samples: Pictures of each prompt.
        kl_pictures: Pictures on which drift is estimated, one of each prompt.
        batch_size: Pictures at once.
        device: For models and judges.
        folder: Gets `audit.html`, `audit.json` and the looks; None is `audit` in the run.
    """

    judges: Mapping[str, str | Part] = field(default_factory=dict)
    prompts: Path | None = None
    num_prompts: int = 64
    samples: int = 2
    kl_pictures: int = 32
    batch_size: int = 16
    device: str = "auto"
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("num_prompts", "samples", "kl_pictures", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of an audit is {getattr(self, name)}; it must be at least 1")


def audit_run(run: str | Path, request: AuditRequest, *, progress: Progress | None = None) -> AuditFindings:
    """Look at every checkpoint of a run that has not been looked at, apply the rule, and write the page.

    Args:
        run: The folder of a run.
        request: How.
        progress: See `Progress`.

    Raises:
        UserError: No run, no checkpoint, no reward, no held-out judge, no prompts, or a model that the run started from
            and that is not there any more; all before anything is drawn. A score that says the same of every picture of
            the start; before any checkpoint is drawn.
    """
    run = Path(run).expanduser()
    recipe = run_recipe_of(run)
    found = candidates(run)
    folder = request.folder or run / FOLDER
    require_writable(folder / "audit.json")
    device = torch.device(chosen_device(request.device))
    scorers = scorers_of(recipe, request.judges, device=device)
    prompts = _prompts(recipe, request)
    if len(prompts) < 2:
        raise UserError("an audit compares checkpoints over prompts, and there is one; give two or more")
    start = open_start(recipe, device=request.device)
    audit = _Audit(
        recipe=recipe,
        request=request,
        prompts=prompts,
        scorers=scorers,
        start=start,
        start_sha256=weights_sha256(start),
        folder=folder,
        device=device,
        progress=progress,
        total=len(found) + 1,
    )
    looks = audit.looks(found)
    steps = [0, *(one.step for one in found)]
    names = ["the start", *(one.name for one in found)]
    findings = find(names, steps, looks, samples=request.samples)
    write_audit(folder, findings, looks, prompts=audit.prompts, samples=request.samples, title=run.name)
    return findings


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """Everything that stays the same from checkpoint to checkpoint."""

    recipe: Recipe
    request: AuditRequest
    prompts: list[str]
    scorers: Scorers
    start: Generator
    start_sha256: str
    folder: Path
    device: torch.device
    progress: Progress | None
    total: int

    def looks(self, found: list[Candidate]) -> list[AuditLook]:
        """At the start and at each checkpoint; drawn, or read from files. Of pictures those that the page shows."""
        start_file = self.folder / "looks" / "start.npz"
        start = AuditLook.load(start_file, self._about())
        shown = self.request.samples * STRIP
        if start is None:
            start = self._look("the start", self.start, None, 0)
            start.save(start_file, self._about())
        for kind in (REWARD, HELD_OUT):
            start_units(start.scores(kind))  # raises before more is drawn
        looks = [start.first(shown)]
        for number, one in enumerate(found, start=1):
            file = self.folder / "looks" / f"{one.name}.npz"
            look = AuditLook.load(file, self._about(one.sha256))
            if look is None:
                model = open_model(
                    one.folder,
                    device=self.request.device,
                    dtype=getattr(torch, self.recipe.model.dtype),
                    mixed_precision=self.recipe.training.mixed_precision,
                ).generator
                look = self._look(one.name, model, start, number)
                look.save(file, self._about(one.sha256))
            looks.append(look.first(shown))
        return looks

    def _look(self, name: str, model: Generator, start: AuditLook | None, number: int) -> AuditLook:
        with training_active():  # nothing that is kept for final figures may answer here
            drawn = self._drawn(name, model, number)
            look = take_look(
                drawn, self.scorers.named, samples=self.request.samples, start=start, device=self.device
            )
        first = range(0, len(look.pictures), self.request.samples)[: self.request.kl_pictures]
        if model is self.start:
            moved = torch.zeros(len(first), dtype=torch.float64)
        else:
            how = self.recipe.sampling
            moved = path_kl(
                model,
                self.start,
                look.pictures[list(first)].float() / 255,
                self.prompts[: len(first)],
                seed=_SEED,
                num_steps=_KL_STEPS,
                guidance=how.guidance,
                spacing=how.spacing,
                negative_prompt=how.negative_prompt,
                batch_size=self.request.batch_size,
            )
        return replace(look, numbers=look.numbers | {PATH_KL: moved.numpy()})

    def _drawn(self, name: str, model: Generator, number: int) -> Iterator[tuple[Tensor, list[str]]]:
        prompts = [prompt for prompt in self.prompts for _ in range(self.request.samples)]
        for first in range(0, len(prompts), self.request.batch_size):
            texts = prompts[first : first + self.request.batch_size]
            yield (
                sample(
                    model,
                    texts,
                    seed=_SEED,
                    indices=range(first, first + len(texts)),
                    **self.recipe.sampling.arguments,
                    batch_size=self.request.batch_size,
                ),
                texts,
            )
            if self.progress is not None:
                done = number * len(prompts) + first + len(texts)
                self.progress(name, done, self.total * len(prompts))

    def _about(self, weights: str = "") -> dict[str, Any]:
        """Plain values on which a look depends."""
        model = self.recipe.model
        said = {
            "format": _FORMAT,
            "weights": weights,
            "start": [self.start_sha256, process_sha256(self.start), model.resolution],
            "precision": [model.dtype, self.recipe.training.mixed_precision],
            "scorers": self.scorers.fingerprints,
            "sampling": configs.plain(self.recipe.sampling),
            "samples": self.request.samples,
            "kl_pictures": self.request.kl_pictures,
            "prompts": hashlib.sha256("\n".join(self.prompts).encode()).hexdigest(),
        }
        return said


def _prompts(recipe: Recipe, request: AuditRequest) -> list[str]:
    """Those that were asked for, or those that the run was looked at with; never those of final figures.

    Raises:
        UserError: There are none.
    """
    if request.prompts is not None:
        return load_prompts(request.prompts)[: request.num_prompts]
    looked = recipe.validation or recipe.monitor
    name = looked.prompts if looked is not None else _WORLD_PROMPTS if in_world(recipe) else None
    if name is None:
        raise UserError(
            "the run's recipe has neither validation nor a monitor, so it names no prompts to look with; give a "
            "file by --prompts"
        )
    found = sources.source(name, name="validation")
    return sources.prompts_of(found, "the prompts of an audit")[: request.num_prompts]
