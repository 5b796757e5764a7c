"""Several models on the same prompts and noise: figures, comparisons, pictures, and one `result.json`.

The judge is an argument. Nothing here knows where the one for final figures is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.assembly.recipe import SamplingConfig
from unifl.errors import UserError
from unifl.evaluation import (
    Judge,
    ModelResult,
    compare_models,
    evaluate_model,
    judge_features,
    save_pictures,
)
from unifl.evaluation.report_inputs import encode_id
from unifl.metrics.result import Metric, ModelEntry, Result, prompts_sha256, read_result, update_result
from unifl.models import Generator, merged_pipeline
from unifl.sampling import sample

SAMPLER = "ddim"
JUDGE_FILE = "judge.txt"  # beside the scores: whose they are


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
    batch_size: int = 64


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        result: As it stands in `result.json`, with what was in the file before.
        models: By id, with the scores behind the figures.
    """

    result: Result
    models: dict[str, ModelResult]


def evaluate_models(
    models: Mapping[str, Candidate],
    prompts: Sequence[str],
    judge: Judge,
    *,
    judge_name: str,
    folder: str | Path,
    pairs: Sequence[tuple[str, str]] = (),
    object_counts: Sequence[int] | None = None,
    references: Mapping[str, Float[Tensor, "n 3 h w"]] | None = None,
    seeds: Sequence[int] = (0,),
    diversity_prompts: int = 100,
    num_pictures: int = 16,
    reuse: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Evaluate and compare models, and write what was found.

    Args:
        models: By id, such as "base@20".
        prompts: Held-out prompts, the same for all.
        judge: Reads the pictures.
        judge_name: Its name in `result.json`.
        folder: Gets `result.json` (merged into what is there), `scores/<id>.npz` and `samples/<id>/`.
        pairs: Ids (a, b) to compare by the overall score: how often a beats b.
        object_counts: Objects that each prompt names, for alignment by number of objects.
        references: Pictures by name; each gives `frechet_<name>` and `kid_<name>`, on the judge's features.
        seeds: Noise seeds; every prompt is drawn once per seed.
        diversity_prompts: Prompts on which diversity over seeds is measured; 0 for none.
        num_pictures: Pictures of each model that are kept as files.
        reuse: Take a model's scores from the folder if weights, sampler, prompts, seeds and judge are the same.
        progress: Called with (id, pictures done, pictures in all).

    Raises:
        UserError: No models or prompts, or a pair with an id that is not among the models.
    """
    _check(models, pairs)
    folder = Path(folder)
    features = {name: judge_features(judge, pictures) for name, pictures in (references or {}).items()}
    judged_by = _fingerprint(judge_name, features)
    entries, found = {}, {}
    pictures: dict[str, Tensor] = {}
    for name, candidate in models.items():
        entry = _entry(candidate, prompts, seeds)
        path = folder / "scores" / f"{encode_id(name)}.npz"
        known = _known(folder, name, entry, judged_by, features) if reuse else None
        if known is None:
            known = evaluate_model(
                partial(_draw, candidate),
                prompts,
                judge,
                seeds=seeds,
                object_counts=object_counts,
                references=features,
                diversity_prompts=diversity_prompts,
                batch_size=candidate.batch_size,
                num_previews=num_pictures,
                progress=partial(progress, name) if progress is not None else None,
            )
            known.save(path)
            pictures[name] = known.previews
        entry.metrics = {metric: Metric.of(value) for metric, value in known.metrics.items()}
        entries[name], found[name] = entry, known
    if pictures:
        (folder / "scores" / JUDGE_FILE).write_text(judged_by, encoding="utf-8")
        kept = len(next(iter(pictures.values())))
        save_pictures(folder, pictures, list(prompts[:kept]), [seeds[0]] * kept)
    comparisons = compare_models(found, pairs, judge=judge_name)
    new = Result(models=entries, comparisons=comparisons)
    return Evaluation(update_result(folder / "result.json", new), found)


def weights_sha256(generator: Generator, role: str = "student") -> str:
    """A hash of the weights that draw as a role does, adapters folded in.

    The same model gives the same hash however it was loaded: complete, or as LoRA on its base.
    """
    pipeline = merged_pipeline(generator, role=role)
    digest = hashlib.sha256()
    for name in sorted(generator.modules()):
        for key, tensor in sorted(getattr(pipeline, name).state_dict().items()):
            digest.update(f"{name}.{key} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _draw(candidate: Candidate, prompts: list[str], *, seed: int, indices: list[int]) -> Tensor:
    how = candidate.sampling
    return sample(
        candidate.generator,
        prompts,
        seed=seed,
        indices=indices,
        num_steps=how.num_steps,
        guidance=how.guidance,
        spacing=how.spacing,
        negative_prompt=how.negative_prompt,
        role=candidate.role,
        batch_size=candidate.batch_size,
    )


def _entry(candidate: Candidate, prompts: Sequence[str], seeds: Sequence[int]) -> ModelEntry:
    how = candidate.sampling
    return ModelEntry(
        weights_sha256=weights_sha256(candidate.generator, candidate.role),
        sampler=SAMPLER,
        steps=how.num_steps,
        guidance=how.guidance,
        spacing=how.spacing,
        seeds=list(seeds),
        prompts_sha256=prompts_sha256(prompts),
    )


def _known(
    folder: Path, name: str, entry: ModelEntry, judged_by: str, features: Mapping[str, object]
) -> ModelResult | None:
    """Scores of an earlier call, if everything that they depend on is as it was."""
    path, judge_file = folder / "scores" / f"{encode_id(name)}.npz", folder / "scores" / JUDGE_FILE
    if not (path.is_file() and judge_file.is_file() and (folder / "result.json").is_file()):
        return None
    before = read_result(folder / "result.json").models.get(name)
    if before is None or judge_file.read_text(encoding="utf-8") != judged_by:
        return None
    complete = all(f"frechet_{reference}" in before.metrics for reference in features)
    return ModelResult.load(path) if complete and replace(before, metrics={}) == entry else None


def _fingerprint(judge_name: str, features: Mapping[str, Float[np.ndarray, "n d"]]) -> str:
    """The judge's name and, as weights are replaced under the same name, what it sees in the references."""
    seen = [f"{name} {values.mean():.4f} {values.std():.4f}" for name, values in features.items()]
    return "\n".join([judge_name, *seen])


def _check(models: Mapping[str, Candidate], pairs: Sequence[tuple[str, str]]) -> None:
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
