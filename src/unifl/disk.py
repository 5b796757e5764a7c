"""Room and permission on the disk, asked for before anything is written; files never half written, hashed, read."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

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


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Keep other processes out of a folder.

    Args:
        folder: Made where it is not there; the lock is its file `.lock`.

    Raises:
        UserError: Another process has it, or it cannot be written to.
    """
    lock = Path(folder) / ".lock"
    require_writable(lock)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"another process works in {folder}; wait for its end, stop it, or name another folder"
        ) from None


def write_atomically(path: str | Path, content: bytes | Iterable[bytes]) -> Path:
    """Writes a file, whole or by pieces, so that a crash leaves the old one or the new one, never half of one."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@contextmanager
def damage_as_value_error() -> Iterator[None]:
    """Whatever numpy and zipfile raise of an `.npz` file that is not there, cut short, altered or something else."""
    try:
        yield
    # RuntimeError: an altered byte may say that a part is encrypted, or compressed in an unknown way
    except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error


def read_arrays(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name: those that are named, or all of them; nothing in it is run.

    Raises:
        ValueError: It cannot be read, for whatever reason, or lacks one of them.
    """
    with damage_as_value_error():
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it holds a single array")
        with found:
            return {name: found[name] for name in names or found.files}


def file_sha256(path: str | Path) -> str:
    """The hash of a file; read in pieces, so that its size does not matter."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(folder: str | Path, files: Iterable[Path]) -> str:
    """One hash of files of a folder and of their names in it, in the order of these."""
    folder, digest = Path(folder), hashlib.sha256()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        digest.update(f"{name} {file_sha256(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def content_sha256(place: Any) -> str | None:
    """The hash of what a text or path names: a file, or all files of a folder; None where it names neither."""
    if not isinstance(place, str | Path) or place == "":
        return None
    path = Path(place).expanduser()
    try:
        if path.is_file():
            return file_sha256(path)
        return (
            files_sha256(path, (one for one in path.rglob("*") if one.is_file())) if path.is_dir() else None
        )
    except (OSError, ValueError):  # such as a text that is too long for a name
        return None


def _readable(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
