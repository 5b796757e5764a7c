"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(help="A YAML file, the name of a recipe that comes along, or a run folder.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes as key=value; the value is YAML.", metavar="KEY=VALUE..."),
]

ScorerWeights = Annotated[
    list[str] | None,
    typer.Option("--weights", help="Where a scorer's weights are, as NAME=PATH.", metavar="NAME=PATH"),
]
ScorerBase = Annotated[
    list[str] | None,
    typer.Option(
        "--base",
        help="The model whose tokenizer and config a scorer takes, as NAME=PATH.",
        metavar="NAME=PATH",
    ),
]
ScorerQuestion = Annotated[
    list[str] | None,
    typer.Option(
        "--question", help="A text file with what a judge is asked, as NAME=PATH.", metavar="NAME=PATH"
    ),
]
