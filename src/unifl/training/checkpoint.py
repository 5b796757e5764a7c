"""Checkpoint folders that are either whole or absent.

A checkpoint is filled under a temporary name, its files and folder are flushed to the disk, and it then gets its
name in one rename. Its manifest holds the SHA-256 of every file, so that damage that happens later is seen too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from unifl.disk import file_sha256
from unifl.errors import UserError
from unifl.training.distributed import num_processes

FORMAT = 1
MANIFEST = "manifest.json"
SETTINGS = "config.yaml"
_TEMPORARY = ".unfinished-"
_PACKAGES = ("unifl", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that is there completely or not at all, whenever the process dies.

    Args:
        folder: Its final place; what is there is replaced.
        fill: Writes the contents into the empty folder that it is given.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f"{_TEMPORARY}{folder.name}"
    _remove(temporary)
    try:
        temporary.mkdir()
        fill(temporary)
        _flush_tree(temporary)
        if folder.exists():
            # a folder cannot be renamed over a full one; between the two renames the older checkpoints remain
            replaced = folder.parent / f"{_TEMPORARY}replaced-{folder.name}"
            _remove(replaced)
            folder.rename(replaced)
            temporary.rename(folder)
            _remove(replaced)
        else:
            temporary.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_checkpoint(run_folder: Path, step: int, settings: str, fill: Callable[[Path], None]) -> Path:
    """Write `checkpoint-<step>` with its manifest.

    Args:
        run_folder: Folder of the run.
        step: Completed training steps.
        settings: The run's settings as YAML, kept beside the weights.
        fill: Writes the state into a folder.

    Returns:
        The checkpoint's folder.
    """

    def fill_with_manifest(folder: Path) -> None:
        fill(folder)
        (folder / SETTINGS).write_text(settings, encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "step": step,
            "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
            "environment": environment(),
            "files": {name: file_sha256(folder / name) for name in _files(folder)},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    folder = run_folder / f"checkpoint-{step}"
    write_folder(folder, fill_with_manifest)
    return folder


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when its manifest verifies."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"it has format {manifest['format']}, this version reads format {FORMAT}"
        for name, digest in files.items():
            if file_sha256(folder / name) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it is incomplete ({type(error).__name__}: {error})"
    return None


def checkpoints(run_folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints of a run, oldest first; they are not verified."""
    found = []
    for folder in run_folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and folder.is_dir():
            found.append((int(match[1]), folder))
    return sorted(found)


def latest_checkpoint(run_folder: Path) -> Path | None:
    """The newest checkpoint whose manifest verifies; damaged ones are skipped with a warning."""
    for _, folder in reversed(checkpoints(run_folder)):
        reason = damage(folder)
        if reason is None:
            return folder
        warnings.warn(f"skipping the damaged checkpoint {folder}: {reason}", stacklevel=2)
    return None


def find_checkpoint(run_folder: Path, choice: str | Path | None) -> Path | None:
    """The checkpoint to resume from.

    Args:
        run_folder: Folder of the run.
        choice: "latest", the path or the name of a checkpoint, or None for a new run.

    Returns:
        A verified checkpoint, or None to start at step 0: with "latest" also when there is none.

    Raises:
        UserError: The chosen one is missing or damaged, or a new run was asked for where one already is.
    """
    if choice is None:
        if checkpoints(run_folder):
            raise UserError(
                f"{run_folder} already holds checkpoints of a run; continue it with "
                "resume_from_checkpoint='latest', or choose another folder"
            )
        return None
    if str(choice) == "latest":
        return latest_checkpoint(run_folder)
    folder = next((path for path in (Path(choice), run_folder / choice) if path.is_dir()), None)
    if folder is None:
        raise UserError(f"there is no checkpoint {choice}; check the path, or resume from 'latest'")
    reason = damage(folder)
    if reason is not None:
        raise UserError(f"the checkpoint {folder} is damaged: {reason}; resume from 'latest' or another one")
    return folder


def warn_about_differences(folder: Path, settings: str) -> None:
    """Warn when the resumed run cannot equal an uninterrupted one: other settings, versions, threads, processes."""
    then = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["environment"]
    now = environment()
    changes = [f"{name} {then.get(name)} -> {now.get(name)}" for name in now if now[name] != then.get(name)]
    if changes:
        warnings.warn(
            f"{folder} was written under other conditions ({', '.join(changes)}): the run goes on, "
            "but not bit for bit as it would have",
            stacklevel=2,
        )
    before = (folder / SETTINGS).read_text(encoding="utf-8").splitlines()
    added = [line.strip() for line in settings.splitlines() if line not in before]
    if added or len(before) != len(settings.splitlines()):
        warnings.warn(
            f"the settings differ from those that {folder} was written with (now: {'; '.join(added[:5])})",
            stacklevel=2,
        )


def prune(run_folder: Path, *, limit: int | None, every: int) -> None:
    """Remove checkpoints that are no longer wanted.

    Args:
        run_folder: Folder of the run.
        limit: How many are kept, the newest ones; None keeps all.
        every: The regular distance in steps. An older checkpoint off that beat was written at an interrupt
            and has done its duty, so that an interrupted run leaves the files of an uninterrupted one.
    """
    older = [folder for step, folder in checkpoints(run_folder)[:-1] if step % every]
    for folder in older:
        shutil.rmtree(folder)
    if limit is not None:
        for _, folder in checkpoints(run_folder)[:-limit]:
            shutil.rmtree(folder)


def set_newer_aside(run_folder: Path, step: int) -> None:
    """Rename checkpoints beyond `step` to "abandoned-...": a run that goes on from `step` replaces them.

    Otherwise the next resume would take the newest of them, and the limit on their number would count them.
    """
    for number, folder in checkpoints(run_folder):
        if number > step:
            set_aside(folder)


def set_aside(folder: Path) -> None:
    """Rename a folder, if it is there, to "abandoned-..." in the place of an earlier one of that name."""
    if folder.exists():
        target = folder.with_name(f"abandoned-{folder.name}")
        _remove(target)
        folder.rename(target)


def remove_unfinished(run_folder: Path) -> None:
    """Remove what a killed process left half written."""
    for folder in run_folder.glob(f"{_TEMPORARY}*"):
        _remove(folder)


def environment() -> dict[str, Any]:
    """What bit-for-bit equality depends on beside the settings: versions, threads, processes, device."""
    found: dict[str, Any] = {"python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["threads"] = torch.get_num_threads()
    found["processes"] = num_processes()  # the rows of a step are those of all of them
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    """Bring a file or folder to the disk itself, so that a power cut cannot undo it."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
