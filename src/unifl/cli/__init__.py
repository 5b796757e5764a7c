"""The command line: parse, call, print. Libraries are imported by the command that needs them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from unifl.cli.arena import arena
from unifl.cli.audit import audit
from unifl.cli.bench import bench
from unifl.cli.console import Commands
from unifl.cli.demo import demo
from unifl.cli.distances import distances
from unifl.cli.doctor import doctor
from unifl.cli.evaluate import CompareCommand, compare, evaluate
from unifl.cli.generate import generate
from unifl.cli.plan import plan
from unifl.cli.preferences import preferences
from unifl.cli.prompts import prompts
from unifl.cli.proxy import proxy
from unifl.cli.publish import push
from unifl.cli.report import report
from unifl.cli.reproduce import reproduce
from unifl.cli.reward import reward
from unifl.cli.score import score, scorers
from unifl.cli.serve_reward import serve_reward
from unifl.cli.train import train
from unifl.cli.world import world

# before transformers is imported: its notes on tokenizers and models are not about what the user did
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Train diffusion models on what you can judge.

    Start here:

        unifl doctor                                    is everything in place?
        unifl demo                                      both stages of UniFL on a laptop, with a report
        unifl train refl --dry-run                      what would a run cost?
        unifl generate world:pipeline "a small red circle, flat style, white background"

    `unifl COMMAND --help` has examples for each command.
    """
    if version:
        from unifl import __version__

        typer.echo(__version__)
        raise typer.Exit


app.command()(train)
app.command()(plan)
app.command()(generate)
app.command()(evaluate)
app.command(cls=CompareCommand)(compare)
app.command()(distances)
app.command()(report)
app.command()(audit)
app.command()(score)
app.command()(scorers)
app.command()(serve_reward)
app.add_typer(prompts, name="prompts")
app.add_typer(preferences, name="preferences")
app.add_typer(reward, name="reward")
app.add_typer(arena, name="arena")
app.add_typer(world, name="world")
app.command()(proxy)
app.command()(demo)
app.command()(doctor)
app.command()(push)
app.command()(bench)
app.command()(reproduce)
