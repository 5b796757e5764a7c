"""`unifl score`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unifl.cli.arguments import ScorerBase, ScorerQuestion, ScorerWeights
from unifl.cli.console import interrupted, out, progress_line, quiet_libraries, this_command
from unifl.errors import UserError

if TYPE_CHECKING:
    from unifl.assembly.part import Part


def score(
    folder: Annotated[Path, typer.Argument(help="Pictures with metadata.jsonl, as `unifl generate` writes.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Scorers: pickscore, world:rewards/color, a folder, module:name; LABEL=... gives the score a name.",
            metavar="SCORER...",
        ),
    ] = None,
    weights: ScorerWeights = None,
    base: ScorerBase = None,
    question: ScorerQuestion = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.", min=1)] = 16,
    again: Annotated[bool, typer.Option("--again", help="Score what has a score already, too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Score pictures, and write the scores beside their prompts.

    Every scorer that trains a model can be asked, and none of them has to
    be told how pictures were made. Afterwards the folder is a sample store:
    `unifl preferences report FOLDER --score NAME` shows its pairs, and
    recipes learn from them. Scores that are there are kept, so an
    interrupted call goes on where it was. `unifl scorers` lists those
    that come by name.

    For example:

        unifl score pictures sharpness jpeg_small
        unifl score pictures pickscore hps=hpsv2.1 --weights hps=HPS_v2.1_compressed.pt --base hps=CLIP-ViT-H-14
        unifl score samples world:rewards/color mine=my_rewards:colour
        unifl score pictures hpsv3 --question hpsv3=instruction.txt
        unifl score pictures chat --weights chat=some-vlm --base chat=http://localhost:8000/v1
    """
    quiet_libraries()
    from unifl.assembly import resolve
    from unifl.assembly.device import chosen_device
    from unifl.assembly.on_pictures import on_pictures
    from unifl.assembly.scoring import score_folder

    place = chosen_device(device)
    asked = labelled(names)
    if not asked:
        raise UserError(
            "no scorer was named; write one or more after the folder (`unifl scorers` lists them)"
        )
    parts = scorer_parts(asked, weights=weights, base=base, question=question)
    scorers = {
        label: on_pictures(resolve.feedback(part, name=label, device=place), device=place)
        for label, part in parts.items()
    }
    try:
        found = score_folder(
            folder, scorers, batch_size=batch_size, again=again, device=place, progress=progress_line
        )
    except KeyboardInterrupt:
        raise interrupted(f"scores so far are kept; go on with: {this_command()}") from None
    for label, mean in found.items():
        out.print(
            f"{label}: {mean.value:.4g} [{mean.low:.4g}, {mean.high:.4g}] over {mean.n} prompts",
            highlight=False,
        )


def scorers() -> None:
    """List the scorers that come by name, with what to know of each.

    For example:

        unifl scorers
    """
    from rich.table import Table

    from unifl.feedback.scorers import SCORERS

    table = Table("name", "scale", "sees", "favours", "weights")
    for name, card in SCORERS.items():
        table.add_row(name, card.scale, card.sees, card.biases, card.weights or "none")
    out.print(table)


def labelled(texts: Sequence[str] | None) -> dict[str, str]:
    """LABEL=SCORER each, or a scorer under its own last name.

    Raises:
        UserError: Two of one name.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        label, equals, path = text.partition("=")
        if not equals:
            label, path = text.rpartition(":")[2].rpartition("/")[2] or text, text
        if label in found:
            raise UserError(f"two are called {label!r}; give them names: first=NAME second=NAME")
        found[label] = path
    return found


def scorer_parts(
    asked: Mapping[str, str],
    *,
    weights: Sequence[str] | None,
    base: Sequence[str] | None,
    question: Sequence[str] | None,
) -> dict[str, Part]:
    """Scorers by name, with where their files are, each of which is given as NAME=PATH.

    Raises:
        UserError: A path for a name that is not among them.
    """
    from unifl.assembly.resolve import named

    places, bases, questions = (_by_label(given, asked) for given in (weights, base, question))
    return {
        label: named(path, weights=places.get(label), base=bases.get(label), question=questions.get(label))
        for label, path in asked.items()
    }


def _by_label(given: Sequence[str] | None, asked: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for text in given or ():
        if not asked:
            raise UserError(
                f"{text!r} names a file of a scorer, and none was named; name one, or leave it out"
            )
        label, equals, path = text.partition("=")
        if not equals or label not in asked:
            raise UserError(f"{text!r} gives no scorer of {', '.join(asked)} a path; write NAME=PATH")
        found[label] = path
    return found
