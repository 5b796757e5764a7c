"""One piece of a reproduction: train a model with one seed, draw held-out prompts, and keep what the judge says."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl import config as configs
from unifl.assembly.audit import FOLDER, AuditRequest, audit_run
from unifl.assembly.audit_candidates import open_start
from unifl.assembly.figures import EVALUATION_SEED
from unifl.assembly.open_model import Opened, open_model
from unifl.assembly.recipe import Recipe, find_recipe, load_recipe, recipes_folder
from unifl.assembly.run import run_recipe
from unifl.disk import write_atomically
from unifl.evaluation import Judge, picture_grid, score_images
from unifl.evaluation.audit import read_metrics
from unifl.evaluation.audit_findings import RECORD
from unifl.models.generator import MixedPrecision
from unifl.reproduce.parts import Look, Piece, PromptSet, Scores, Training, known, world_sha256
from unifl.reproduce.prepare import recorded_baseline
from unifl.reproduce.readings import Readings, of_feedback
from unifl.reproduce.unknown import names_unknown
from unifl.sampling import sample
from unifl.world.annotated import SceneImages
from unifl.world.scenes import sample_prompts

METRICS = (
    "overall", "alignment", "alignment_fraction", "structure", "style", "quality", "color", "layout", "lighting",
    "detail",
)  # fmt: skip
_WITHOUT_EFFECT = ("output_dir", "validation")
_PREVIEWS = 8
_FRESH_SEED = EVALUATION_SEED + 1
_FRESH: tuple[PromptSet, ...] = ("fresh", "fresh_again", "fresh_once_more")
_BATCH = 64
_PRECISION: MixedPrecision = "bf16"
"""As in training; drawing in float32 takes a quarter more time."""


@dataclass(frozen=True)
class Workplace:
    """Where a reproduction works, and with what.

    Attributes:
        runs: Gets a run folder for each training and seed; may be deleted afterwards.
        results: Gets the small files that are kept: scores, strips of pictures, what was prepared.
        judge: Gives the scores; that of final figures, which refuses while something trains.
        trainings: Everything that is trained, by name.
        num_prompts: Held-out prompts; each is drawn once per training seed, with that seed's noise.
        readings: What is read off pictures beside the judge's scores.
        keeps_features: Whether the judge's features are kept too, for distances between distributions.
        changes: Overrides for all recipes, for a quicker look.
    """

    runs: Path
    results: Path
    judge: Judge
    trainings: dict[str, Training]
    num_prompts: int
    readings: Readings = of_feedback
    keeps_features: bool = False
    changes: tuple[str, ...] = ()

    @property
    def prepared(self) -> Path:
        """Folder of what trainings need beside the package."""
        return self.results / "prepared"

    def run_folder(self, training: str, seed: int) -> Path:
        """Run folder of one training and seed; another one where anything that it depends on is different."""
        training = self.trainings[training].run or training
        seed += self.trainings[training].first_seed
        settings = f"{self.settings(self.trainings[training])} {seed} {world_sha256()}"
        return self.runs / f"{training}-seed{seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    def piece_file(self, training: str, seed: int) -> Path:
        """The file of scores of one training and seed."""
        return self.results / "pieces" / f"{training}-seed{seed}.npz"

    def recipe(self, training: Training, seed: int) -> Recipe:
        """The recipe of one training and seed."""
        assert training.recipe is not None
        start: tuple[str, ...] = ()
        if training.start is not None:
            start = (f"model.{training.start_as}={self.run_folder(training.start, seed)}",)
        changes = [
            change.replace("$prepared", str(self.prepared)).replace("$runs", str(self.runs))
            for change in training.changes
        ]
        place = [
            f"output_dir={self.run_folder(training.name, seed)}",
            f"training.seed={training.first_seed + seed}",
            "validation=null",
        ]
        return load_recipe(training.recipe, [*changes, *self.changes, *start, *place])

    def settings(self, training: Training) -> str:
        """What a training depends on, what it starts from included.

        Of a recipe that is what it says itself: a setting that later versions add, and that it leaves at its default,
        makes nothing old.
        """
        if training.recipe is None:
            return ""
        path = find_recipe(training.recipe, recipes_folder())
        said = configs.load(path, dict, [*training.changes, *self.changes])
        own = configs.dump({key: said[key] for key in said if key not in _WITHOUT_EFFECT})
        return own if training.start is None else own + self.settings(self.trainings[training.start])

    def origin(self, training: Training, seed: int) -> str:
        """What the scores of one training and seed depend on."""
        settings = f"drawn in {_PRECISION}\n{self.settings(training)}"
        return training.origin(seed, prompts=self.num_prompts, settings=settings)

    def known(self, training: Training, seed: int) -> Piece | None:
        """The piece, if it was measured before and nothing has changed since."""
        return known(self.piece_file(training.name, seed), self.origin(training, seed))


def measure(place: Workplace, training: Training, seed: int) -> Piece:
    """Train if the model is not there yet, judge it, and write the piece.

    Args:
        place: Where.
        training: What.
        seed: Of the training, and of the noise that is drawn with.
    """
    began = time.perf_counter()
    train(place, training, seed)
    if training.audited:
        _audit(place, training, seed)
    trained = time.perf_counter()
    looks: dict[str, Scores] = {}
    for look in training.looks:
        number = training.first_seed + seed
        if look.real:
            scenes = SceneImages.sample(place.num_prompts, seed=EVALUATION_SEED + number, held_out=True)
            prompts, images = scenes.prompts, scenes.images
        else:
            prompts = held_out_prompts(place.num_prompts, look.prompts)
            images = _drawn(_opened(place, training, seed, look), prompts, number)
        looks[look.name] = _judged(place, images, prompts)
        _keep_pictures(place, f"{training.name}-{look.name}", images, seed)
    piece = Piece(
        origin=place.origin(training, seed),
        looks=looks,
        seconds={"training": trained - began, "judging": time.perf_counter() - trained},
        threads=torch.get_num_threads(),
        logs=_logged(place, training, seed),
    )
    piece.save(place.piece_file(training.name, seed))
    return piece


def train(place: Workplace, training: Training, seed: int) -> None:
    """The run of one training and seed, and of what it starts from; complete ones cost nothing."""
    if training.recipe is None:
        return
    if training.start is not None:
        train(place, place.trainings[training.start], seed)
    run_recipe(place.recipe(training, seed), progress=False, console=None)


@lru_cache(maxsize=4)
def held_out_prompts(number: int, which: PromptSet) -> list[str]:
    """Prompts for final figures, of which no combination occurs in anything that trained."""
    if which == "held_out":
        return sample_prompts(number, seed=EVALUATION_SEED, held_out=True)
    several = sample_prompts(4 * number, seed=EVALUATION_SEED, held_out=True)
    if which in _FRESH:
        others = dict.fromkeys(sample_prompts(8 * number, seed=_FRESH_SEED, held_out=True))
        first = number * _FRESH.index(which)
        found = [prompt for prompt in others if prompt not in set(several)][first : first + number]
        assert len(found) == number
        return found
    chosen = [prompt for prompt in several if names_unknown(prompt)]
    assert len(chosen) >= number
    return chosen[:number]


def audit_file(prepared: Path, training: str, seed: int) -> Path:
    """Where the findings of an audit are kept."""
    return prepared / f"audit-{training}-seed{seed}.json"


def _audit(place: Workplace, training: Training, seed: int) -> None:
    """Audit a run by the validation judge."""
    run = place.run_folder(training.name, seed)
    audit_run(run, AuditRequest(num_prompts=training.audit_prompts))
    path = audit_file(place.prepared, training.name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (run / FOLDER / RECORD).read_bytes())


def _opened(place: Workplace, training: Training, seed: int, look: Look) -> Opened:
    if training.recipe is None:
        assert look.num_steps is not None
        best = recorded_baseline(place.prepared, look.num_steps)
        guidance = best["guidance"] if look.guidance is None else look.guidance
        return open_model(
            "world:pipeline",
            num_steps=look.num_steps,
            guidance=guidance,
            spacing=best["spacing"],
            mixed_precision=_PRECISION,
        )
    folder = place.run_folder(training.name, seed)
    if look.checkpoint == 0:
        recipe = place.recipe(training, seed)
        return Opened(open_start(recipe, device="auto"), recipe.sampling, look.name)
    if look.checkpoint is not None:
        folder = folder / f"checkpoint-{look.checkpoint}"
    return open_model(folder, num_steps=look.num_steps, guidance=look.guidance, mixed_precision=_PRECISION)


@torch.no_grad()
def _logged(place: Workplace, training: Training, seed: int) -> dict[str, Float[np.ndarray, " s"]]:
    if not training.logs:
        return {}
    rows = read_metrics(place.run_folder(training.name, seed) / "metrics.jsonl")
    return {name: np.array([row[name] for row in rows]) for name in training.logs}


def _drawn(model: Opened, prompts: list[str], seed: int) -> Float[Tensor, "p 3 h w"]:
    how = model.sampling
    return sample(
        model.generator,
        prompts,
        seed=seed,
        **how.arguments,
        batch_size=_BATCH,
    )


def _judged(place: Workplace, images: Float[Tensor, "p 3 h w"], prompts: list[str]) -> Scores:
    """The judge's scores, what else is read off the pictures, and the judge's features where they are kept."""
    table = score_images(place.judge, images, prompts)
    values = {name: table.values[name][:, 0] for name in METRICS}
    features = None
    if place.keeps_features:
        with torch.no_grad():
            parts = [place.judge.features(part).cpu() for part in images.split(_BATCH)]
        features = torch.cat(parts).numpy().astype(np.float64)
    return Scores(values | place.readings(images, prompts), features)


def _keep_pictures(place: Workplace, name: str, images: Float[Tensor, "p 3 h w"], seed: int) -> None:
    if seed == 0:
        path = place.results / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture_grid([list(images[:_PREVIEWS])], scale=1).save(path, optimize=True)


def preview_prompts(which: PromptSet) -> list[str]:
    """The prompts of the pictures that are kept of a set."""
    return held_out_prompts(_PREVIEWS, which)
