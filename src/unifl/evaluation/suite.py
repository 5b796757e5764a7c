"""Evaluate one model: draw its pictures, let a judge read them, and give every metric with its interval.

Noise is paired. The picture of prompt i and seed k is asked for as ``sample_fn([prompt_i], seed=k,
indices=[i])``, and the sampler keys its noise by (seed, index) alone, so every model, number of steps and
batch size starts from the same noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.evaluation.groups import with_groups
from unifl.evaluation.judge import Judge, read_features, read_scores
from unifl.evaluation.model_result import ModelResult
from unifl.evaluation.parts import Part, Parts
from unifl.evaluation.scores import ScoreTable, build_table
from unifl.metrics.diversity import seed_diversity
from unifl.metrics.frechet import frechet_distance, frechet_replicates
from unifl.metrics.intervals import RESAMPLES, Interval, bootstrap_counts, centred_interval, mean_interval
from unifl.metrics.kid import kernel_distance, kernel_replicates

DISTANCE_RESAMPLES = (
    400  # a distance costs far more per resample than a mean, and its interval needs less detail
)

MAX_DIMENSIONS = 64


@runtime_checkable
class SampleFn(Protocol):
    """Draws pictures ``(b, 3, h, w)`` in [0, 1]; noise depends on ``seed`` and each sample's index, nothing else."""

    def __call__(self, prompts: list[str], *, seed: int, indices: list[int]) -> Tensor:
        """One picture per prompt."""
        ...


@torch.no_grad()
def score_images(
    judge: Judge,
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    *,
    batch_size: int = 64,
    object_counts: Sequence[int] | None = None,
    seed: int = 0,
) -> ScoreTable:
    """Scores of pictures, one per prompt.

    Args:
        judge: reads the pictures.
        images: values in [0, 1].
        prompts: the prompt of each picture.
        batch_size: pictures per call of the judge.
        object_counts: objects that each prompt names; adds ``alignment_one_object`` and so on.
        seed: noise seed of the pictures, kept so that tables can be paired.
    """
    if len(images) != len(prompts):
        raise UserError(f"{len(images)} pictures for {len(prompts)} prompts; give one prompt per picture")
    batches = [
        read_scores(judge, images[rows], [prompts[i] for i in rows])
        for rows in _batches(len(prompts), batch_size)
    ]
    return build_table(_concatenate(batches), prompts, seed=seed, object_counts=object_counts)


@torch.no_grad()
def judge_features(
    judge: Judge, images: Float[Tensor, "n 3 h w"], *, batch_size: int = 64
) -> Float[np.ndarray, "n d"]:
    """A judge's features of pictures, float64, for use as a reference of ``evaluate_model``."""
    rows = [read_features(judge, images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return np.concatenate(rows)


@torch.no_grad()  # not inference mode: what a generator caches while sampling must stay usable for training
def evaluate_model(
    sample_fn: SampleFn,
    prompts: Sequence[str],
    judge: Judge,
    *,
    seeds: Sequence[int] = (0,),
    object_counts: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    references: Mapping[str, Float[np.ndarray, "m d"]] | None = None,
    diversity_prompts: int = 100,
    diversity_seeds: int = 4,
    batch_size: int = 64,
    num_previews: int = 16,
    keep_features: bool = False,
    resamples: int = RESAMPLES,
    bootstrap_seed: int = 0,
    parts: Parts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ModelResult:
    """Draw and judge the pictures of one model.

    Args:
        sample_fn: draws pictures; see ``SampleFn``.
        prompts: held-out prompts.
        judge: reads them.
        seeds: noise seeds; every prompt is drawn once per seed.
        object_counts: objects that each prompt names, for the alignment subsets.
        groups: the group of each prompt; adds ``<score>/<group>`` and ``<score>/mean of groups`` for ``overall`` and
            for scores that are not among ``JUDGE_KEYS``.
        references: feature sets by name; each gives ``frechet_<name>`` and ``kid_<name>``. Distances use the
            same number of samples of both sides, the smaller of the two, which is the ``n`` of the metric.
        diversity_prompts: prompts on which seed diversity is measured, spread evenly over the list; 0 for
            none.
        diversity_seeds: samples of each of those prompts; what ``seeds`` lacks is drawn with the seeds that
            follow.
        batch_size: pictures per call of the sampler and the judge.
        num_previews: pictures of the first seed to keep.
        keep_features: keep the judge's features of all pictures, in float32.
        resamples: bootstrap resamples of means.
        bootstrap_seed: seed of all resamples.
        parts: keeps batches that are done, and gives those that an earlier call kept.
        progress: called with (pictures done, pictures in all).

    Returns:
        Every metric with a 95 % interval over prompts, and what paired comparisons need.

    Raises:
        UserError: no prompts, seeds that make no sense, or a judge that does not keep to `Judge`.
    """
    start = time.perf_counter()
    _check_request(prompts, seeds, diversity_prompts, diversity_seeds)
    _check_references(references or {})
    chosen = _spread(len(prompts), diversity_prompts)
    extra = [max(seeds) + 1 + k for k in range(max(0, diversity_seeds - len(seeds)))] if chosen else []
    tick = _counter(len(prompts) * len(seeds) + len(chosen) * len(extra), progress)
    draw = _Drawing(sample_fn, judge, prompts, batch_size, parts, tick)
    passes = [draw(range(len(prompts)), seed=seed, previews=num_previews) for seed in seeds]
    more = [draw(chosen, seed=seed, previews=0).features for seed in extra]

    tables = [
        build_table(done.scores, prompts, seed=seed, object_counts=object_counts)
        for seed, done in zip(seeds, passes, strict=True)
    ]
    table = ScoreTable.join(tables)
    table, macro, macro_replicates = with_groups(table, groups, resamples=resamples, seed=bootstrap_seed)
    features = np.stack([done.features for done in passes], axis=1)  # (p, s, d)
    diversity = np.zeros(0)
    if chosen:
        diversity = seed_diversity(np.concatenate([features[chosen], *(m[:, None] for m in more)], axis=1))
    distances, replicates = _distances(features, references or {}, bootstrap_seed)
    return ModelResult(
        metrics=_mean_metrics(table, diversity, resamples, bootstrap_seed) | macro | distances,
        scores=table,
        diversity=diversity,
        replicates=macro_replicates | replicates,
        previews=passes[0].previews,
        seconds=time.perf_counter() - start,
        features=features.astype(np.float32) if keep_features else None,
    )


def _spread(number: int, wanted: int) -> list[int]:
    """At most `wanted` of `number` indices, evenly spread."""
    return np.unique(np.linspace(0, number - 1, min(wanted, number)).astype(int)).tolist()


@dataclass(frozen=True)
class _Pass:
    """One pass over prompts with one seed."""

    scores: dict[str, np.ndarray]
    features: np.ndarray
    previews: Tensor


@dataclass(frozen=True)
class _Drawing:
    """How pictures are drawn and judged.

    They are judged as they are drawn and then dropped: thousands of large ones would not fit in memory.
    """

    sample_fn: SampleFn
    judge: Judge
    prompts: Sequence[str]
    batch_size: int
    parts: Parts | None
    tick: Callable[[int], None]

    def __call__(self, indices: Sequence[int], *, seed: int, previews: int) -> _Pass:
        done = []
        for rows in _batches(len(indices), self.batch_size):
            batch = [indices[row] for row in rows]
            wanted = min(max(previews - rows[0], 0), len(rows))
            done.append(self._batch(batch, seed, wanted))
            self.tick(len(batch))
        kept = [part.previews for part in done if len(part.previews)]
        return _Pass(
            _concatenate([part.scores for part in done]),
            np.concatenate([part.features for part in done]),
            torch.cat(kept) if kept else torch.zeros(0, 3, 1, 1),
        )

    def _batch(self, batch: list[int], seed: int, previews: int) -> Part:
        known = None if self.parts is None else self.parts.load(seed, batch, previews)
        if known is not None:
            return known
        texts = [self.prompts[i] for i in batch]
        images = self.sample_fn(texts, seed=seed, indices=batch)
        scores, features = read_scores(self.judge, images, texts), read_features(self.judge, images)
        part = Part(scores, features, images[:previews].float().cpu())
        if self.parts is not None:
            self.parts.save(seed, batch, part)
        return part


def _counter(total: int, progress: Callable[[int, int], None] | None) -> Callable[[int], None]:
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return tick


def _check_request(prompts: Sequence[str], seeds: Sequence[int], num_prompts: int, num_seeds: int) -> None:
    if not len(prompts):
        raise UserError("no prompts to evaluate on; give at least one")
    if not len(seeds) or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds must be different and at least one, got {list(seeds)}")
    if num_prompts > 0 and num_seeds < 2:
        raise UserError(
            f"seed diversity needs at least 2 seeds, got {num_seeds}; set diversity_prompts=0 to skip it"
        )


def _check_references(references: Mapping[str, np.ndarray]) -> None:
    for name, features in references.items():
        if features.shape[1] > MAX_DIMENSIONS:
            raise UserError(
                f"features of {name} have {features.shape[1]} dimensions, and {DISTANCE_RESAMPLES} resamples of more "
                f"than {MAX_DIMENSIONS} take hours; measure such distances by `unifl distances`, without resamples"
            )


def _batches(n: int, batch_size: int) -> Iterator[list[int]]:
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    for start in range(0, n, batch_size):
        yield list(range(start, min(start + batch_size, n)))


def _concatenate(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _mean_metrics(table: ScoreTable, diversity: np.ndarray, resamples: int, seed: int) -> dict[str, Interval]:
    per_prompt = {name: table.per_prompt(name) for name in table.values}
    if len(diversity):
        per_prompt["diversity"] = diversity
    return {
        name: mean_interval(values, resamples=resamples, seed=seed)
        for name, values in per_prompt.items()
        if np.isfinite(values).any()
    }


def _distances(
    features: np.ndarray, references: Mapping[str, np.ndarray], seed: int
) -> tuple[dict[str, Interval], dict[str, np.ndarray]]:
    prompts, samples, _ = features.shape
    # Seed-major order, and the samples of a prompt share its count: prompts are what is resampled.
    flat = features.transpose(1, 0, 2).reshape(prompts * samples, -1)
    counts = np.tile(bootstrap_counts(prompts, resamples=DISTANCE_RESAMPLES, seed=seed), (1, samples))
    metrics, replicates = {}, {}
    for name, reference in references.items():
        n = min(len(flat), len(reference))
        own, other, weight = flat[:n], reference[:n], counts[:, :n]
        replicates[f"frechet_{name}"] = frechet_replicates(own, other, weight)
        replicates[f"kid_{name}"] = kernel_replicates(own, other, weight)
        for key, value in (
            (f"frechet_{name}", frechet_distance(own, other, few=True)),
            (f"kid_{name}", kernel_distance(own, other)),
        ):
            metrics[key] = centred_interval(value, replicates[key], n=n)
    return metrics, replicates
