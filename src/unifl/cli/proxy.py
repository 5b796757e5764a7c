"""`unifl proxy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from unifl.cli.console import interrupted, out, quiet_libraries, this_command


def proxy(
    model: Annotated[str, typer.Argument(help="world:pipeline, a hub name, a folder, a run.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Pictures with captions: a folder, shards, world:scenes, or package.module:name."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Gets the proxy.")],
    cache: Annotated[
        Path | None, typer.Option(help="Gets the encoded pictures; FOLDER-cache by default.")
    ] = None,
    tower: Annotated[Literal["vit", "resnet"], typer.Option(help="What reads latents.")] = "vit",
    width: Annotated[int, typer.Option(help="Of that tower; 0 takes one that suits the model.")] = 0,
    depth: Annotated[int, typer.Option(help="Its blocks.")] = 6,
    text: Annotated[
        Literal["pipeline", "hashed"],
        typer.Option(help="The model's own text encoder, copied, or a small network on words."),
    ] = "pipeline",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Pairs per step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 5e-4,
    held_out: Annotated[
        int, typer.Option(help="Pairs kept back, among which captions are looked for.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Of the first weights, the split and the order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Pre-train a latent proxy reward, which RG-LCD fits to an expert.

    Pictures are encoded once; then latents and their captions find each
    other, as in CLIP. The result is what a recipe names as `proxy`.

    For example:

        unifl proxy world:pipeline world:scenes runs/proxy --tower resnet --width 32 --text hashed --steps 200
        unifl proxy path/to/sd15 pictures runs/proxy --depth 12
    """
    quiet_libraries()
    from unifl.assembly.proxy import ProxyRequest, fit_proxy
    from unifl.feedback.latent_proxy_fit import ProxyFitConfig, ProxyFitRow

    fit = ProxyFitConfig(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, held_out=held_out, seed=seed
    )
    request = ProxyRequest(
        model=model, data=data, folder=folder, cache=cache or folder.with_name(f"{folder.name}-cache"), tower=tower,
        width=width, depth=depth, text=text, fit=fit, device=device,
    )  # fmt: skip

    def told(row: ProxyFitRow) -> None:
        found = f"held-out pairs found {row.held_out_accuracy:.1%}, loss {row.held_out_loss:.3f}"
        out.print(f"step {row.step} of {steps}: {found}", highlight=False)

    try:
        best = fit_proxy(request, progress=told).best
    except KeyboardInterrupt as stop:
        raise interrupted(
            f"what was encoded is kept; the same command trains anew: {this_command()}"
        ) from stop
    out.print(
        f"the proxy is in {folder}, of step {best.step}: {best.held_out_accuracy:.1%} of pairs found",
        highlight=False,
    )
