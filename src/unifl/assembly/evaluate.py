"""Several models on the same prompts and noise: figures, comparisons, pictures, and one `result.json`.

The judge is an argument. Nothing here knows where the one for final figures is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.assembly.distances import Distances
from unifl.assembly.drawn import DrawnPictures
from unifl.assembly.fingerprint import fingerprint
from unifl.assembly.model_distances import Reference, model_distances
from unifl.assembly.model_hash import process_sha256, weights_sha256
from unifl.assembly.recipe import SamplingConfig
from unifl.disk import claimed, require_writable
from unifl.errors import UserError
from unifl.evaluation import (
    Judge,
    ModelResult,
    Origin,
    Parts,
    compare_models,
    evaluate_model,
    judge_features,
    rank_models,
    save_pictures,
)
from unifl.evaluation.report_inputs import encode_id
from unifl.metrics.bradley_terry import Ranking
from unifl.metrics.result import (
    Comparison,
    Metric,
    ModelEntry,
    Rank,
    Result,
    prompts_sha256,
    read_existing,
    update_result,
)
from unifl.models import Generator
from unifl.sampling import sample

SAMPLER = "ddim"
_SCORES = "scores"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model with the way in which it is sampled.

    Attributes:
        generator: The model; several candidates may share one.
        role: Whose weights.
        sampling: Steps, guidance, spacing.
        batch_size: Pictures at once.
    """

    generator: Generator
    role: str = "student"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 32

    @property
    def settings(self) -> dict[str, Any]:
        """What pictures depend on beside what `entry` says."""
        how = self.sampling
        return {
            "negative_prompt": how.negative_prompt,
            "consistency": None if how.consistency is None else asdict(how.consistency),
            "mixed_precision": self.generator.mixed_precision,
            "image_size": list(self.generator.image_size),
            "process_sha256": process_sha256(self.generator),
        }

    def entry(self, prompts: Sequence[str], seeds: Sequence[int]) -> ModelEntry:
        """Its row of `result.json`, without metrics."""
        how = self.sampling
        return ModelEntry(
            weights_sha256=weights_sha256(self.generator, self.role),
            sampler=SAMPLER if how.consistency is None else how.consistency.kind,
            steps=how.num_steps,
            guidance=how.guidance,
            spacing=how.spacing,
            seeds=list(seeds),
            prompts_sha256=prompts_sha256(prompts),
        )

    @torch.no_grad()
    def draw(self, prompts: list[str], *, seed: int, indices: list[int]) -> Float[Tensor, "b 3 h w"]:
        """One picture per prompt."""
        return sample(
            self.generator,
            prompts,
            seed=seed,
            indices=indices,
            **self.sampling.arguments,
            role=self.role,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        result: As it stands in `result.json`, with what was in the file before.
        models: Those of this call by id, with the scores behind the figures.
        comparisons: Those of this call, in the order of the pairs.
        ranks: Of three models or more, if finite strengths fit.
        unranked: Why there are none.
        distances: Of each model to a reference and to the first, where there is one.
    """

    result: Result
    models: dict[str, ModelResult]
    comparisons: list[Comparison]
    ranks: Ranking | None = None
    unranked: str = ""
    distances: Mapping[str, Distances] = field(default_factory=dict)


def evaluate_models(
    models: Mapping[str, Candidate | DrawnPictures],
    prompts: Sequence[str],
    judge: Judge,
    *,
    judge_name: str,
    folder: str | Path,
    pairs: Sequence[tuple[str, str]] = (),
    metric: str = "overall",
    object_counts: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    references: Mapping[str, Float[Tensor, "n 3 h w"]] | None = None,
    reference: Reference | None = None,
    keep_features: bool = False,
    seeds: Sequence[int] = (0,),
    diversity_prompts: int = 100,
    diversity_seeds: int = 4,
    num_pictures: int = 16,
    reuse: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Evaluate and compare models, and write what was found.

    Batches are written as they are judged, and scores and pictures of a model as soon as it is done, so that `reuse`
    goes on where an earlier call was interrupted.

    Args:
        models: By id, such as "base@20"; or pictures that are there already, of these prompts.
        prompts: Held-out prompts, the same for all.
        judge: Reads the pictures.
        judge_name: Its name in `result.json`.
        folder: Gets `result.json` (merged into what is there), `scores/<id>.npz` and `samples/<id>/`.
        pairs: Ids (a, b) to compare: how often a beats b.
        metric: What decides a pair.
        object_counts: Objects that each prompt names, for alignment by number of objects.
        groups: The group of each prompt, by which scores are given too.
        references: Pictures by name; each gives `frechet_<name>` and `kid_<name>`, on the judge's features.
        reference: Pictures of a folder by the judge's features: all distances to them, and the drift from the first
            model.
        keep_features: Keep features in `scores/`, so that a reference of a later call draws nothing again.
        seeds: Noise seeds; every prompt is drawn once per seed.
        diversity_prompts: Prompts on which diversity over seeds is measured; 0 for none.
        diversity_seeds: Pictures of each of these; what `seeds` lacks is drawn for it.
        num_pictures: Pictures of each model that are kept as files.
        reuse: Take a model's scores from the folder if all that they depend on is the same: weights, sampling,
            prompts, seeds, judge, references and what is measured.
        progress: Called with (id, pictures done, pictures in all).

    Raises:
        UserError: No models or prompts; a pair with an id that is not among the models; a metric that the judge
            does not give; a folder that cannot be written to, that another evaluation works in, or in which
            `result.json` or scores cannot be read.
    """
    _check(models, pairs)
    folder = Path(folder)
    require_writable(folder / "result.json")
    read_existing(folder / "result.json")
    ask = _Request(
        judge_name=judge_name,
        judge_fingerprint=fingerprint(judge, judge_name),
        features={name: judge_features(judge, pictures) for name, pictures in (references or {}).items()},
        seeds=list(seeds),
        diversity_prompts=diversity_prompts,
        diversity_seeds=diversity_seeds,
        object_counts=None if object_counts is None else [int(count) for count in object_counts],
        groups=None if groups is None else list(groups),
        keep_features=keep_features or reference is not None,
    )
    entries, found = dict[str, ModelEntry](), dict[str, ModelResult]()
    # two calls would take each other's batches, and each write its own result.json
    with claimed(folder / _SCORES):
        for name, candidate in models.items():
            entry = candidate.entry(prompts, seeds)
            origin = ask.origin(entry, candidate)
            result = _known(folder, name, origin, ask.keep_features) if reuse else None
            if result is None:
                tell = partial(progress, name) if progress is not None else None
                parts = Parts(folder / "parts" / encode_id(name), origin, keep=reuse)
                result = replace(
                    ask.measure(candidate, prompts, judge, num_pictures, parts, tell), origin=origin
                )
                _keep(folder, name, result, seed=seeds[0])
                parts.clear()
            if pairs:  # a metric that is not there is noticed before the next model is drawn
                result.scores.per_prompt(metric)
            metrics = {key: Metric.of(interval) for key, interval in result.metrics.items()}
            entries[name], found[name] = replace(entry, metrics=metrics), result
        comparisons = compare_models(found, pairs, judge=judge_name, metric=metric)
        ranks, unranked = _ranked(found, metric)
        rows = [] if ranks is None else _rank_rows(ranks, judge_name, metric)
        paired = [name for name, one in models.items() if isinstance(one, Candidate)]
        distances = {} if reference is None else model_distances(found, reference, paired=paired)
        for name, one in distances.items():
            entries[name].metrics.update((key, Metric.of(interval)) for key, interval in one.numbers.items())
        merged = update_result(
            folder / "result.json", Result(models=entries, comparisons=comparisons, ranks=rows)
        )
        return Evaluation(merged, found, comparisons, ranks, unranked, distances)


def _ranked(found: Mapping[str, ModelResult], metric: str) -> tuple[Ranking | None, str]:
    """Ranks say more than comparisons do from three models on."""
    if len(found) < 3:
        return None, ""
    try:
        return rank_models(found, metric=metric), ""
    except UserError as error:  # such as a model that won everything, which is no reason to lose the figures
        return None, f"{error}"


def _rank_rows(ranks: Ranking, judge: str, metric: str) -> list[Rank]:
    return [
        Rank(model=name, judge=judge, metric=metric, strength=s.value, low=s.low, high=s.high, n=s.n)
        for name, s in zip(ranks.names, ranks.strengths, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is measured of every model, the same for all."""

    judge_name: str
    judge_fingerprint: str
    features: dict[str, np.ndarray]
    seeds: list[int]
    diversity_prompts: int
    diversity_seeds: int
    object_counts: list[int] | None
    groups: list[str] | None
    keep_features: bool

    def origin(self, entry: ModelEntry, candidate: Candidate | DrawnPictures) -> Origin:
        """Everything that a model's scores depend on."""
        return Origin(
            judge=self.judge_name,
            judge_fingerprint=self.judge_fingerprint,
            judge_sees={name: f"{seen.mean():.4f} {seen.std():.4f}" for name, seen in self.features.items()},
            drawn=asdict(entry)
            | {
                **candidate.settings,
                "diversity_prompts": self.diversity_prompts,
                "diversity_seeds": self.diversity_seeds,
                "object_counts": self.object_counts,
                "groups": self.groups,
            },
        )

    def measure(
        self,
        candidate: Candidate | DrawnPictures,
        prompts: Sequence[str],
        judge: Judge,
        num_pictures: int,
        parts: Parts,
        progress: Callable[[int, int], None] | None,
    ) -> ModelResult:
        return evaluate_model(
            candidate.draw,
            prompts,
            judge,
            seeds=self.seeds,
            object_counts=self.object_counts,
            groups=self.groups,
            references=self.features,
            diversity_prompts=self.diversity_prompts,
            diversity_seeds=self.diversity_seeds,
            batch_size=candidate.batch_size,
            num_previews=num_pictures,
            keep_features=self.keep_features,
            parts=parts,
            progress=progress,
        )


def _known(folder: Path, name: str, origin: Origin, keep_features: bool) -> ModelResult | None:
    """Scores of an earlier call, if everything that they depend on is as it was, and features are there if wanted."""
    path = _scores_file(folder, name)
    known = ModelResult.load(path) if path.is_file() else None
    if known is None or known.origin != origin or (keep_features and known.features is None):
        return None
    return known


def _keep(folder: Path, name: str, result: ModelResult, *, seed: int) -> None:
    """Write pictures and, when those are there, the scores that let a later call skip this model."""
    kept = len(result.previews)
    save_pictures(folder, {name: result.previews}, result.scores.prompts[:kept], [seed] * kept)
    result.save(_scores_file(folder, name))


def _scores_file(folder: Path, name: str) -> Path:
    return folder / _SCORES / f"{encode_id(name)}.npz"


def _check(models: Mapping[str, Candidate | DrawnPictures], pairs: Sequence[tuple[str, str]]) -> None:
    if not models:
        raise UserError("there is no model to evaluate; name at least one")
    for name in (name for pair in pairs for name in pair):
        if name not in models:
            raise UserError(f"there is no model {name!r} to compare; there are {', '.join(models)}")


def object_numbers(prompts: Sequence[str]) -> list[int]:
    """Objects that each prompt of the embedded world names.

    Raises:
        UserError: A prompt that is not one of the world's sentences.
    """
    from unifl.world.scenes import parse

    return [len(parse(prompt).things) for prompt in prompts]


def curated_pictures(number: int, *, seed: int) -> Float[Tensor, "n 3 h w"]:
    """Held-out scenes of the embedded world with all qualities at least 0.7."""
    from unifl.world.annotated import SceneImages

    return SceneImages.sample(number, seed=seed, min_quality=0.7, held_out=True).images
