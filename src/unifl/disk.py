"""Room and permission on the disk, asked for before anything is written; files that are never half written."""

from __future__ import annotations

import os
import shutil
import tempfile
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


def require_writable(path: str | Path) -> None:
    """Refuses to start work whose result could not be written in the end.

    Args:
        path: The file that is to be written; missing folders above it are made.

    Raises:
        UserError: It is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; write elsewhere, or change the rights of {path.parent}"
        ) from error


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Writes a file so that a crash leaves the old one or the new one, never half of one."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _readable(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
