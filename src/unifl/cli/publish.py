"""`unifl push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import out
from unifl.errors import UserError


def push(
    model: Annotated[Path, typer.Argument(help="The folder of a saved model, or of the run that saved it.")],
    repo: Annotated[str, typer.Argument(help="Where to: owner/name.")],
    public: Annotated[bool, typer.Option("--public", help="Make a repository that anyone can see.")] = False,
) -> None:
    """Upload a saved model with its card to the Hugging Face hub.

    Nothing else in unifl sends anything anywhere. Log in before, by
    `hf auth login`. A repository that does not exist is made, private
    unless --public.

    For example:

        unifl push runs/stage1 me/my-lora
        unifl push runs/stage1/model me/my-lora --public
    """
    from unifl.models.card import push as upload

    folder = model / "model" if (model / "model").is_dir() else model
    if not folder.is_dir():
        raise UserError(f"there is no folder {model}; give a run, or the folder of a saved model")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"{repo!r} is no repository; write owner/name")
    out.print(upload(folder, repo, private=not public), highlight=False, soft_wrap=True)
