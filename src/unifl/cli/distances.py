"""`unifl distances`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import interrupted, out, progress_line, quiet_libraries, this_command, write_json


def distances(
    pictures: Annotated[
        Path, typer.Argument(help="A folder of pictures, as `unifl generate` writes, or any.")
    ],
    reference: Annotated[Path, typer.Argument(help="The folder that they are compared with.")],
    features: Annotated[str, typer.Option(help="dinov2, clip, inception, or NAME=PATH.")] = "dinov2",
    few: Annotated[
        bool, typer.Option("--few", help="A Frechet distance of fewer pictures than dimensions, too.")
    ] = False,
    subset: Annotated[int, typer.Option(help="Pictures in each subset of KID.", min=2)] = 1000,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where features are kept.")] = Path(
        "runs/distances"
    ),
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the numbers into this file, too.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Say how far the pictures of one folder are from those of another.

    Frechet distance, KID and CMMD; precision, recall, density and coverage;
    how many different pictures each side amounts to (Vendi), and how much
    those of one prompt differ. Two folders that `unifl generate` drew for
    the same prompts and seeds are also compared picture by picture: with
    the base model's as reference that is how far training has moved it.

    The classical numbers are FID and KID on inception, FD-DINOv2 on dinov2
    and CMMD on clip. Features are kept, so that a reference is seen once.

    For example:

        unifl distances pictures coco_val2017 --features dinov2
        unifl distances pictures coco_val2017 --features inception=pt_inception-2015-12-05-6726825d.pth
        unifl distances runs/mine_pictures base_pictures --features clip --few
    """
    quiet_libraries()
    from rich.table import Table

    from unifl.assembly.device import chosen_device
    from unifl.assembly.distances import measure_distances
    from unifl.assembly.picture_features import find_pictures, folder_features, picture_sizes
    from unifl.assembly.readings import named_features
    from unifl.disk import require_writable

    for file in (output, folder / "features.npz"):
        if file is not None:
            require_writable(file)
    both = [find_pictures(place) for place in (pictures, reference)]
    place = chosen_device(device)
    extractor = named_features(features).to(place)
    sizes = [picture_sizes(side) for side in both]
    try:
        sides = [
            folder_features(
                found,
                of_each,
                extractor,
                folder,
                batch_size=batch_size,
                device=place,
                progress=partial(progress_line, str(name)),
            )
            for found, of_each, name in zip(both, sizes, (pictures, reference), strict=True)
        ]
    except KeyboardInterrupt:
        raise interrupted(
            f"features of a folder that is done are kept; go on with: {this_command()}"
        ) from None
    found = measure_distances(*sides, name=extractor.name, few=few, subset=subset)
    if output is not None:
        write_json(found, output)
    table = Table("metric", "value", "95 %", "n", title=f"on {extractor.name}", title_justify="left")
    for name, one in found.numbers.items():
        interval = "" if one.low == one.high else f"{one.low:.4g} to {one.high:.4g}"
        table.add_row(name.replace("_", " "), f"{one.value:.4g}", interval, str(one.n))
    out.print(table)
    for name, why in found.left_out.items():
        out.print(f"no {name}: {why}", highlight=False, markup=False, soft_wrap=True)
