"""The page of a reproduction: a table of all claims, then each with its figures, plots and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from unifl.reproduce.claims import Finding
from unifl.reproduce.figures import interval_text
from unifl.reproduce.measure import preview_prompts
from unifl.reproduce.parts import Piece, Training

_VERDICTS = {True: "holds", False: "does not hold here", None: "not decided"}
_OVER_SEEDS = """Intervals are 95 % bootstrap intervals over prompts and training seeds.
Three seeds say little about the spread between seeds: where that dominates, an interval that leaves out a number says
hardly more than that all three agree, which chance alone gives in one of eight cases on a given side. The value of each
seed stands beside it."""
_OF_ONE_SEED = "Intervals are 95 % bootstrap intervals over prompts."
_HEAD = """# {title}

Written by `unifl reproduce {name}`; the figures are in [{name}.json]({name}.json). Models are trained on the
[embedded world](../world.md) with {seeds}; each draws {prompts} held-out prompts with noise of its own,
which both sides of a comparison share. Final figures come from the gold judge, which chose nothing: settings were
chosen with the validation judge on training prompts, and the rule of each claim was written before it was measured;
where that is not so, the notes under the claim say what came later.
{spread} All pieces together
took {minutes:.0f} minutes, each in a process of {threads} thread(s); two such processes share the work of two cores.

"""


def write_page(
    path: Path,
    title: str,
    findings: Sequence[Finding],
    pieces: Mapping[tuple[str, int], Piece],
    trainings: Mapping[str, Training],
) -> Path:
    """Write Markdown, plots and grids of pictures.

    Args:
        path: The page; plots and pictures go to the folder of its name.
        title: Its first line.
        findings: What was found.
        pieces: What it was found on.
        trainings: By name, all that there are pieces of.
    """
    folder = path.parent / path.stem
    sizes = {len(values) for piece in pieces.values() for values in _columns(piece)}
    seconds = sum(sum(piece.seconds.values()) for piece in pieces.values())
    threads = sorted({piece.threads for piece in pieces.values()})
    text = _HEAD.format(
        title=title,
        name=path.stem,
        seeds=_seeds(pieces, trainings),
        spread=_OVER_SEEDS if len({seed for _, seed in pieces}) > 1 else _OF_ONE_SEED,
        prompts=max(sizes),
        minutes=seconds / 60,
        threads=" or ".join(map(str, threads)),
    )
    text += "| | claim | paper | here | pairs | verdict |\n|---|---|---|---|---|---|\n"
    for finding in findings:
        claim, main = finding.claim, finding.rows[0]
        text += (
            f"| {claim.id} | {claim.statement} | {claim.paper} | {interval_text(main.figure, main.unit)} | {claim.n} | "
            f"{_VERDICTS[claim.holds]} |\n"
        )
    for finding in findings:
        text += _section(finding, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _seeds(pieces: Mapping[tuple[str, int], Piece], trainings: Mapping[str, Training]) -> str:
    """How many seeds a model is trained with; where it is one, whether all have the same."""
    rounds = {seed for _, seed in pieces}
    if len(rounds) > 1:
        return f"{len(rounds)} training seeds"
    own = {trainings[name].first_seed + seed for name, seed in pieces if trainings[name].recipe is not None}
    return "1 training seed" if len(own) <= 1 else f"one training seed each, {len(own)} in all"


def _columns(piece: Piece) -> list:
    return [values for look in piece.looks.values() for values in look.values.values()]


def _section(finding: Finding, folder: Path) -> str:
    claim = finding.claim
    text = f"\n## ({claim.id}) {claim.statement}\n\n"
    text += f"Paper: {claim.paper}. Holds if {finding.rule}. **{_VERDICTS[claim.holds].capitalize()}.**\n\n"
    text += "| | | each seed |\n|---|---|---|\n"
    for row in finding.rows:
        seeds = ", ".join(_number(value, row.unit) for value in row.figure.seeds)
        text += f"| {row.what} | {interval_text(row.figure, row.unit)} | {seeds} |\n"
    if finding.notes:
        text += f"\n{finding.notes}\n"
    if finding.curves:
        name = f"claim-{claim.id}.svg"
        _plot(finding, folder / name)
        text += f"\n![{claim.statement}]({folder.name}/{name})\n"
    strips = {title: folder / "pictures" / f"{name}.png" for name, title in finding.pictures.items()}
    strips = {title: file for title, file in strips.items() if file.is_file()}
    if strips:
        name = f"claim-{claim.id}.png"
        _grid(list(strips.values()), folder / name)
        text += f"\n![{claim.statement}]({folder.name}/{name})\n\n"
        prompts = "; ".join(preview_prompts(finding.prompts))
        text += f"From top to bottom: {', '.join(strips)}. The prompts, from left to right: {prompts}.\n"
    return text


def _number(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "%" else f"{value:+.3f}"


def _plot(finding: Finding, path: Path) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "unifl", "font.size": 9}):
        figure = Figure(figsize=(4.2 * len(finding.curves), 2.8), layout="constrained")
        axes = figure.subplots(1, len(finding.curves), squeeze=False)[0]
        for axis, (title, lines) in zip(axes, finding.curves.items(), strict=True):
            for label, points in lines.items():
                x, y, low, high = zip(*points, strict=True)
                axis.plot(x, y, marker="o", markersize=3, label=label)
                axis.fill_between(x, low, high, alpha=0.2, linewidth=0)
            axis.set_title(title, fontsize=9)
            axis.legend(frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _grid(strips: Sequence[Path], path: Path) -> None:
    pictures = [Image.open(file) for file in strips]
    width, height = max(p.width for p in pictures), sum(p.height for p in pictures)
    grid = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        grid.paste(picture, (0, top))
        top += picture.height
    grid.resize((2 * width, 2 * height), Image.Resampling.NEAREST).save(path, optimize=True)
