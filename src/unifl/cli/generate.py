"""`unifl generate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from unifl.cli.console import interrupted, out, picture_bar, quiet_libraries, this_command
from unifl.errors import UserError


def generate(
    model: Annotated[
        str,
        typer.Argument(help="world:pipeline, a hub name, a folder, a .safetensors file, or a run folder."),
    ],
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts.", metavar="PROMPT...")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompts", help="Prompts: a file, or a suite as published.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where pictures go.")] = Path("pictures"),
    lora: Annotated[str | None, typer.Option(help="A LoRA on top: a file, a folder, a run.")] = None,
    steps: Annotated[int | None, typer.Option(help="Network evaluations per picture.")] = None,
    guidance: Annotated[float | None, typer.Option(help="w of u + w (c - u); 1 is none.")] = None,
    spacing: Annotated[
        Literal["leading", "trailing"] | None, typer.Option(help="Timesteps of the schedule.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures per prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.")] = 16,
    resolution: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    half: Annotated[bool, typer.Option("--bf16", help="Weights in bfloat16.")] = False,
    users: Annotated[
        Path | None, typer.Option(help="Embeddings of users, for a model with a user adapter.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="The user of --users for whom pictures are.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Draw pictures: PNG files, grid.png, generate.json and metadata.jsonl.

    Steps, guidance and spacing that are not given are those that the run
    which made the model was meant for. The noise depends on the number of
    the prompt and the seed alone, so that pictures of two models can be
    laid side by side. What has been drawn is kept, so an interrupted call
    goes on where it was; other settings need another folder.

    For example:

        unifl generate world:pipeline "a small red circle, flat style, white background"
        unifl generate runs/stage1 --prompts prompts.txt --count 4
        unifl generate runs/stage2 --prompts prompts.txt --steps 4 --out four_steps
        unifl generate path/to/sd15 "a cat" --lora runs/mine --guidance 5
        unifl generate runs/stage1/checkpoint-20 "a cat" --seed 7
        unifl generate runs/sd15_ppd_dpo "a cat" --users users.safetensors --user ada
    """
    quiet_libraries()
    import torch

    from unifl.assembly.generate import generate_pictures
    from unifl.assembly.open_model import open_model
    from unifl.data import load_prompts
    from unifl.data.users import UserEmbeddings

    texts = [*(prompts or ()), *(load_prompts(prompt_file) if prompt_file else ())]
    if not texts:
        raise UserError('there is no prompt; write one after the model, in "", or name a file by --prompts')
    if (users is None) != (user is None):
        raise UserError(
            "--users names a file of embeddings and --user one of its users; give both, or neither"
        )
    whom = None if users is None or user is None else (user, UserEmbeddings.from_path(users)[user])
    opened = open_model(
        model,
        lora=lora,
        num_steps=steps,
        guidance=guidance,
        spacing=spacing,
        negative_prompt=negative,
        resolution=resolution,
        device=device,
        dtype=torch.bfloat16 if half else torch.float32,
    )
    how = opened.sampling
    out.print(f"{opened.id}: guidance {how.guidance:g}, {how.spacing} spacing, seed {seed}", highlight=False)
    try:
        with picture_bar() as bar:
            paths = generate_pictures(
                opened,
                texts,
                folder,
                seed=seed,
                count=count,
                batch_size=batch_size,
                user=whom,
                progress=partial(bar, opened.id),
            )
    except KeyboardInterrupt:
        raise interrupted(f"what was drawn is kept; go on with: {this_command()}") from None
    out.print(f"{len(paths)} pictures in {folder}; to look at: {folder / 'grid.png'}", highlight=False)
