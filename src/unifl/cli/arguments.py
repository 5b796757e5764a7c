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
