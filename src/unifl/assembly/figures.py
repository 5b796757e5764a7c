"""Figures of models that are named on a command line: what to draw, what to compare with, who judges."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unifl.assembly import resolve
from unifl.assembly.device import chosen_device
from unifl.assembly.drawn import DrawnPictures
from unifl.assembly.evaluate import Candidate, Evaluation, curated_pictures, evaluate_models, object_numbers
from unifl.assembly.model_distances import Reference, open_reference
from unifl.assembly.open_model import Opened, open_model
from unifl.assembly.readings import ReadingsRequest
from unifl.data.suites import Entry, Suite, drawn_folders, load_suite
from unifl.errors import UserError
from unifl.evaluation import Judge, Readings
from unifl.feedback.features import PictureFeatures
from unifl.process import Spacing

EVALUATION_SEED = 71
"""Of held-out prompts and of the curated set; training, validation and baselines have seeds of their own."""

GOLD = "world:judges/gold"
_DIVERSITY_SEEDS = 4

WORLD_PROMPTS = 500
"""Held-out prompts of the embedded world on which is measured where nothing else is asked for."""


@dataclass(frozen=True)
class Spec:
    """A model as it is written on the command line: [NAME=]MODEL[@STEPS]."""

    model: str
    name: str | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read one."""
        match = re.fullmatch(r"(?:([\w.-]+)=)?(.+?)(?:@(\d+))?", text)
        if match is None:
            raise UserError(f"cannot read the model {text!r}; write MODEL, MODEL@STEPS or NAME=MODEL@STEPS")
        name, model, steps = match.groups()
        return cls(model, name, int(steps) if steps else None)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure on.

    Attributes:
        prompts: A file; None takes those of a folder of pictures, or held-out ones of the embedded world.
        num_prompts: At most so many, of every group some; None takes all of a file, and `WORLD_PROMPTS` of the world.
        seeds: Pictures per prompt.
        judge: A name for `unifl.assembly.resolve.judge`.
        guidance: For all models; None takes what each run says, or what is on record.
        spacing: Likewise.
        device: For models.
        batch_size: Pictures at once.
        reuse: Take scores of an earlier call where nothing has changed.
        suite: Format of `prompts`, see `unifl.data.suites`.
        readings: What is measured in place of the judge, if anything.
        reference: A folder of pictures to which distances are measured, on the features of `readings`.
    """

    prompts: Path | None = None
    num_prompts: int | None = None
    seeds: int = 4
    judge: str = GOLD
    guidance: float | None = None
    spacing: Spacing | None = None
    device: str = "auto"
    batch_size: int = 32
    reuse: bool = False
    suite: str = "auto"
    readings: ReadingsRequest = field(default_factory=ReadingsRequest)
    reference: Path | None = None


def measure(
    specs: Sequence[str],
    request: Request,
    folder: Path,
    *,
    gold: Callable[[], Judge],
    against_first: bool = True,
    metric: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate models and write `result.json`, scores and pictures.

    Args:
        specs: Models, see `Spec`; or folders of pictures that GenEval's script, or one like it, has drawn.
        request: What to measure on.
        folder: Where files go.
        gold: Loads the judge of final figures.
        against_first: Compare every model with the first one; otherwise the first with each of the others.
        metric: What decides a pair; None is "overall", or the first of the readings.
        progress: Called with (id, pictures done, pictures in all).
        tell: Called with a line that says how many prompts of a file are taken, where these are not all, and that one
            alone has no interval.

    Raises:
        UserError: No such model, prompts or judge; two models of one id; prompts that the judge cannot read.
    """
    if (request.num_prompts is not None and request.num_prompts < 1) or request.seeds < 1:
        raise UserError("the numbers of prompts and seeds must be at least 1")
    readings = request.readings
    world = request.judge.startswith(resolve.WORLD) and not readings.asked
    suite = _suite(request, specs, tell)
    prompts = suite.prompts
    counts = _object_numbers(prompts, request.judge) if world else None
    if tell is not None and len(prompts) == 1:
        tell(
            "one prompt says nothing of others: intervals over prompts take two or more, and these have no width"
        )
    judge: Judge
    if readings.asked:
        judge = readings.open(suite, device=chosen_device(request.device))
        metric = metric or judge.names[0]
    else:
        judge = resolve.judge(request.judge, gold=gold)
    models = _candidates(specs, request, prompts)
    reference = _reference(request, judge, len(prompts), folder, progress)
    ids = list(models)
    pairs = [(other, ids[0]) if against_first else (ids[0], other) for other in ids[1:]]
    number = len(prompts) * request.seeds
    return evaluate_models(
        models,
        prompts,
        judge,
        judge_name=readings.name if readings.asked else request.judge.removeprefix("world:judges/"),
        folder=folder,
        pairs=pairs,
        metric=metric or "overall",
        object_counts=counts,
        groups=suite.groups,
        reference=reference,
        keep_features=readings.features is not None,
        references={"curated": curated_pictures(number, seed=EVALUATION_SEED)} if world else None,
        seeds=range(request.seeds),
        **_diversity(models, request),
        reuse=request.reuse,
        progress=progress,
    )


def _reference(
    request: Request,
    readings: Judge,
    num_prompts: int,
    folder: Path,
    progress: Callable[[str, int, int], None] | None,
) -> Reference | None:
    """Its pictures are read, which may take minutes: only after all that may be wrong with models was found."""
    if request.reference is None or not isinstance(readings, Readings):
        return None
    if not isinstance(readings.extract, PictureFeatures):
        return None
    if num_prompts * request.seeds < 2:
        raise UserError("distances are of sets of pictures; ask for two prompts or seeds, or more")
    return open_reference(
        request.reference,
        readings.extract,
        kept=folder / "features",
        batch_size=request.batch_size,
        device=readings.device,
        progress=progress,
    )


def _suite(request: Request, specs: Sequence[str], tell: Callable[[str], None] | None) -> Suite:
    """The prompts of a file, or those for which the first pictures were drawn, or held-out ones of the world."""
    drawn = (_drawn_folder(Spec.parse(spec)) for spec in specs)
    source = request.prompts or next(filter(None, drawn), None)
    if source is None:
        return Suite("plain", tuple(map(Entry, held_out_prompts(request.num_prompts or WORLD_PROMPTS))))
    whole = load_suite(source, request.suite)
    suite = whole if request.num_prompts is None else whole.first(request.num_prompts)
    if tell is not None and len(suite.entries) < len(whole.entries):
        tell(f"{len(suite.entries)} of {len(whole.entries)} prompts of {source}")
    return suite


def _object_numbers(prompts: Sequence[str], judge: str) -> list[int]:
    """Objects that each prompt of the embedded world names.

    Raises:
        UserError: Other prompts.
    """
    try:
        return object_numbers(prompts)
    except UserError as error:
        raise UserError(
            f"{judge} judges prompts of the embedded world alone ({error}); name what judges these: --score SCORER, "
            "--detector MODEL for those of GenEval, or another --judge"
        ) from error


def _candidates(
    specs: Sequence[str], request: Request, prompts: Sequence[str]
) -> dict[str, Candidate | DrawnPictures]:
    """Models by id, and folders of pictures by their names."""
    found: dict[str, Candidate | DrawnPictures] = {}
    for spec in map(Spec.parse, specs):
        name, one = _candidate(spec, request, prompts)
        if name in found:
            raise UserError(f"two models are called {name!r}; give them names: first=MODEL second=MODEL")
        found[name] = one
    return found


def _candidate(spec: Spec, request: Request, prompts: Sequence[str]) -> tuple[str, Candidate | DrawnPictures]:
    folder = _drawn_folder(spec)
    if folder is not None:
        if spec.steps is not None:
            raise UserError(f"{folder} holds pictures that were drawn in some way; leave out @{spec.steps}")
        pictures = DrawnPictures.find(folder, prompts, num_seeds=request.seeds, batch_size=request.batch_size)
        return spec.name or folder.resolve().name, pictures
    opened = open_model(
        spec.model,
        num_steps=spec.steps,
        guidance=request.guidance,
        spacing=request.spacing,
        device=request.device,
    )
    candidate = Candidate(generator=opened.generator, sampling=opened.sampling, batch_size=request.batch_size)
    return _id(spec, opened), candidate


def _drawn_folder(spec: Spec) -> Path | None:
    """Where pictures lie in the place of a model; None for a model."""
    folder = Path(spec.model).expanduser()
    return folder if drawn_folders(folder) else None


def _diversity(models: Mapping[str, Candidate | DrawnPictures], request: Request) -> dict[str, int]:
    """On how many prompts and seeds it is measured; of pictures that are there no more can be drawn."""
    seeds = _DIVERSITY_SEEDS
    if any(isinstance(one, DrawnPictures) for one in models.values()):
        seeds = min(seeds, request.seeds)
    asked = not request.readings.asked or request.readings.features is not None
    return {"diversity_prompts": 100 if asked and seeds > 1 else 0, "diversity_seeds": seeds}


def held_out_prompts(number: int) -> list[str]:
    """Prompts of the embedded world for final figures; their combinations occur in nothing that trained."""
    from unifl.world.scenes import sample_prompts

    return sample_prompts(number, seed=EVALUATION_SEED, held_out=True)


def _id(spec: Spec, opened: Opened) -> str:
    return f"{spec.name or opened.name}@{opened.sampling.num_steps}"
