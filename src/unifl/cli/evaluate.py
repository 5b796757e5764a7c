"""`unifl evaluate` and `unifl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from unifl.cli.arguments import ScorerBase, ScorerQuestion, ScorerRevision, ScorerWeights
from unifl.cli.console import quiet_libraries
from unifl.errors import UserError

PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts", help="Prompts: a file, or a suite as published; held-out ones of the world by default."
    ),
]
SuiteName = Annotated[
    str,
    typer.Option(
        "--suite",
        help="Format of --prompts: hpsv2, partiprompts, pick_a_pic, geneval, t2i_compbench, dpg, drawbench, plain.",
    ),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        "--score",
        help="Measure this in place of a judge (`unifl scorers`), also LABEL=SCORER.",
        metavar="SCORER",
    ),
]
NumPrompts = Annotated[
    int | None,
    typer.Option(
        help="At most so many prompts, of every category some.",
        show_default="all of a file, 500 of the world",
    ),
]
Seeds = Annotated[int, typer.Option(help="Pictures per prompt.")]
JudgeName = Annotated[
    str,
    typer.Option("--judge", help="world:judges/gold, world:judges/validation, or package.module:name."),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="w of u + w (c - u), for all models; by default what each was made for."),
]
SpacingName = Annotated[
    Literal["leading", "trailing"] | None,
    typer.Option("--spacing", help="Timesteps, for all models; by default what each was made for."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
BatchSize = Annotated[int, typer.Option(help="Pictures at once.", min=1)]
Reuse = Annotated[
    bool,
    typer.Option(
        "--reuse",
        help="Keep scores of an earlier call, also of one that was interrupted, if nothing changed.",
    ),
]


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="MODEL, MODEL@STEPS or NAME=MODEL@STEPS; or a folder that GenEval's script drew.",
            metavar="MODEL...",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where files go: the run itself if it is the only model."),
    ] = None,
    prompts: PromptFile = None,
    num_prompts: NumPrompts = None,
    seeds: Seeds = 4,
    judge: JudgeName = "world:judges/gold",
    suite: SuiteName = "auto",
    scores: Scores = None,
    weights: ScorerWeights = None,
    base: ScorerBase = None,
    question: ScorerQuestion = None,
    revision: ScorerRevision = None,
    features: Annotated[
        str | None, typer.Option(help="Measure diversity on dinov2, clip or inception, also NAME=PATH.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Measure distances of --features to this folder of pictures, and the drift."),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Judge a suite of GenEval by this detector: a hub name or a folder.")
    ] = None,
    color_model: Annotated[
        str, typer.Option(help="CLIP that reads colours for GenEval, or world:palette.")
    ] = "openai/clip-vit-large-patch14",
    threshold: Annotated[float, typer.Option(help="How sure a detection must be.")] = 0.3,
    counting_threshold: Annotated[float, typer.Option(help="The same where objects are counted.")] = 0.9,
    guidance: Guidance = None,
    spacing: SpacingName = None,
    reuse: Reuse = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> None:
    r"""Measure models on the same prompts and noise; write result.json.

    Every metric comes with a 95 % interval over prompts. Each model is also
    compared with the first one, picture by picture. Without other wishes
    the prompts are held-out ones of the embedded world and the judge is
    the one of final figures; do not choose settings by it, take
    --judge world:judges/validation for that.

    On prompts of your own, or on a suite that was published (recognised by
    its files), name what to measure: scorers by --score, or a detector for
    the suite of GenEval. Categories of a suite are groups of the report.
    Three models or more are ranked, too.

    Pictures that another tool drew in the layout of GenEval
    (00000/metadata.jsonl, 00000/samples/0000.png, ...) are judged as they
    are, with the prompts that lie beside them.

    With --features and --reference, distances to a folder of pictures are
    measured (FID, KID, CMMD, precision, recall, Vendi), and how far each
    model is from the first.

    For example:

        unifl evaluate world:pipeline@20 runs/stage1 runs/refl
        unifl evaluate world:pipeline@4 world:pipeline@20 runs/stage2@4
        unifl evaluate runs/stage1 --num-prompts 100 --judge world:judges/validation
        unifl evaluate base=path/to/sd15 mine=runs/mine --prompts prompts.txt \
              --judge my_judges:Reader --out runs/figures
        unifl evaluate base=path/to/sd15 mine=runs/mine --prompts PartiPrompts.tsv --score pickscore
        unifl evaluate base=path/to/sd15 mine=runs/mine --prompts evaluation_metadata.jsonl \
              --detector facebook/mask2former-swin-small-coco-instance
        unifl evaluate theirs=outputs/geneval --detector facebook/mask2former-swin-small-coco-instance
        unifl evaluate base=path/to/sd15 mine=runs/mine --prompts captions.txt --score clipscore \
              --features dinov2 --reference coco_val2017
    """
    quiet_libraries()
    from unifl.assembly.figures import Request
    from unifl.assembly.readings import ReadingsRequest
    from unifl.cli.figures import own_folder, show_figures
    from unifl.cli.score import labelled, scorer_parts
    from unifl.evaluation.geneval import Thresholds

    readings = ReadingsRequest(
        scorers=scorer_parts(
            labelled(scores), weights=weights, base=base, question=question, revision=revision
        ),
        detector=detector,
        color_model=color_model,
        thresholds=Thresholds(score=threshold, counting=counting_threshold),
        features=features,
    )
    if features is not None and not readings.asked:
        raise UserError("--features goes with --score or --detector; a judge has features of its own")
    if reference is not None and features is None:
        raise UserError("--reference goes with --features, on which pictures are compared; name them, too")
    request = Request(
        suite=suite,
        reference=reference,
        readings=readings,
        prompts=prompts,
        num_prompts=num_prompts,
        seeds=seeds,
        judge=judge,
        guidance=guidance,
        spacing=spacing,
        device=device,
        batch_size=batch_size,
        reuse=reuse,
    )
    show_figures(models, request, folder or own_folder(models))


def compare(
    a: Annotated[str, typer.Argument(help="The first model; or its id, with --scores.")],
    b: Annotated[str, typer.Argument(help="The second.")],
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="A folder in which both were evaluated: compares ids, draws nothing."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What decides a pair.")] = "overall",
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where files go.")] = Path("runs/comparison"),
    prompts: PromptFile = None,
    num_prompts: NumPrompts = None,
    seeds: Seeds = 1,
    judge: JudgeName = "world:judges/gold",
    guidance: Guidance = None,
    spacing: SpacingName = None,
    reuse: Reuse = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> None:
    """How often do pictures of A beat those of B?

    Both draw from the same prompts and noise, and a judge decides each
    pair by its overall score or that of --metric; differences up to 0.01
    are ties, which count as half a win. With --scores the pictures of an
    earlier evaluation are compared, by the judge that it had.

    For example:

        unifl compare runs/stage1 world:pipeline
        unifl compare runs/stage2@4 world:pipeline@4
        unifl compare stage1@20 refl@20 --scores runs/demo
        unifl compare stage1@20 base@20 --scores runs/demo --metric structure
    """
    quiet_libraries()
    from unifl.assembly.figures import Request
    from unifl.cli.figures import compare_drawn, compare_stored, show_comparisons

    if scores is not None:
        row = compare_stored(a, b, scores, metric)
    else:
        request = Request(
            prompts=prompts,
            num_prompts=num_prompts,
            seeds=seeds,
            judge=judge,
            guidance=guidance,
            spacing=spacing,
            device=device,
            batch_size=batch_size,
            reuse=reuse,
        )
        row = compare_drawn(a, b, request, folder, metric)
    show_comparisons([row])


class CompareCommand(TyperCommand):
    """`compare`, which takes no option of drawing together with --scores: it would do nothing."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            UserError: Such options are given.
        """
        sources = {option.opts[0]: ctx.get_parameter_source(option.name) for option in self.params}
        given = [name for name, source in sources.items() if source.name == "COMMANDLINE"]
        vain = [name for name in given if name not in ("a", "b", "--scores", "--metric")]
        if "--scores" in given and vain:
            raise UserError(
                f"{', '.join(vain)} cannot go with --scores, which compares what has been drawn and judged before; "
                "leave out one or the other"
            )
        return super().invoke(ctx)
