"""Room on the disk, asked for before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from unifl.errors import UserError


def require_free_space(folder: str | Path, num_bytes: int) -> None:
    """Refuses to start writing where the disk is too full.

    Args:
        folder: Where files are about to be written; it need not exist yet.
        num_bytes: Bytes that are about to be written.

    Raises:
        UserError: The disk of the folder has less room than that.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise UserError(
            f"not enough room on the disk of {folder}: {_readable(num_bytes)} are needed and {_readable(free)} are "
            "free; delete old checkpoints, keep fewer of them (checkpoints_total_limit) or write elsewhere"
        )


def _readable(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
