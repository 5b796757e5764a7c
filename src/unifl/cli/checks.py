"""What `unifl doctor` looks at; each check is a function that returns one row."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

MINIMUM = {
    "torch": "2.13",
    "diffusers": "0.42",
    "transformers": "5.23",
    "peft": "0.21",
    "accelerate": "1.15",
}
_ROOM = 5 * 10**9  # bytes; a handful of checkpoints of a large LoRA
_IMPORT_SECONDS = 120


@dataclass(frozen=True)
class Check:
    """One row: "fix" stops training, "note" is worth knowing."""

    state: Literal["ok", "note", "fix"]
    what: str
    found: str
    advice: str = ""


def all_checks(folder: str) -> list[Check]:
    """Every check in the order of the table."""
    checks: list[Callable[[], Check]] = [
        python,
        device,
        threads,
        torchvision,
        bitsandbytes,
        hub,
        world_weights,
    ]
    return [*versions(), *(check() for check in checks), room(folder)]


def python() -> Check:
    """The interpreter."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("ok", "Python", found)


def versions() -> list[Check]:
    """The libraries that decide what works."""
    rows = [Check("ok", "unifl", _version("unifl") or "from source")]
    for name, minimum in MINIMUM.items():
        found = _version(name)
        if found is None:
            rows.append(Check("fix", name, "missing", f"pip install '{name}>={minimum}'"))
        elif _numbers(found) < _numbers(minimum):
            rows.append(
                Check("fix", name, found, f"older than what is tested: pip install '{name}>={minimum}'")
            )
        else:
            rows.append(Check("ok", name, found))
    return rows


def device() -> Check:
    """GPU, or none."""
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        free, total = torch.cuda.mem_get_info()
        return Check("ok", "device", f"{names} ({free / 1e9:.1f} of {total / 1e9:.1f} GB free)")
    if torch.version.cuda is not None:
        advice = "torch has CUDA but sees no GPU: look at nvidia-smi, the driver and CUDA_VISIBLE_DEVICES"
        return Check("note", "device", "CPU only", advice)
    advice = "enough for the embedded world; Stable Diffusion needs a GPU and a CUDA build of torch"
    return Check("note", "device", "CPU only, torch without CUDA", advice)


def threads() -> Check:
    """Threads against cores: several processes with many threads each are slower than one."""
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    found = f"{torch.get_num_threads()} threads on {cores} cores"
    if torch.get_num_threads() > cores:
        return Check("note", "threads", found, f"threads compete for cores: OMP_NUM_THREADS={cores}")
    load = os.getloadavg()[0] if sys.platform != "win32" else 0.0
    if load > cores + 1:
        advice = (
            "other processes are busy: training will be several times slower, and its time estimate wrong"
        )
        return Check("note", "threads", f"{found}, load {load:.1f}", advice)
    return Check("ok", "threads", found)


def torchvision() -> Check:
    """A torchvision that cannot load its operators takes transformers and diffusers down with it."""
    if importlib.util.find_spec("torchvision") is None:
        return Check("ok", "torchvision", "not installed, not needed")
    # in another process: a failed import would leave half of it behind in this one
    try:
        outcome = subprocess.run(
            [sys.executable, "-c", "import torch, torchvision; torch.ops.torchvision.nms"],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("note", "torchvision", "its import takes minutes", "pip uninstall torchvision")
    if outcome.returncode == 0:
        return Check("ok", "torchvision", _version("torchvision") or "there")
    reason = (outcome.stderr.strip().splitlines() or ["it fails"])[-1]
    advice = (
        "it does not fit this torch, and transformers and diffusers fail with it: pip uninstall torchvision "
        "(unifl does not need it)"
    )
    return Check("fix", "torchvision", reason[:120], advice)


def bitsandbytes() -> Check:
    """8-bit optimisers."""
    found = _version("bitsandbytes")
    if found is None:
        return Check("ok", "8-bit optimisers", "not installed", "pip install bitsandbytes if you want them")
    return Check("ok", "8-bit optimisers", f"bitsandbytes {found}")


def hub() -> Check:
    """Whether hub names can work."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check(
            "note", "hub", "HF_HUB_OFFLINE is set", "only local models load; unset it to download or push"
        )
    return Check("ok", "hub", "downloads allowed (nothing was contacted)")


def world_weights() -> Check:
    """The packaged model, rewards and judges."""
    spec = importlib.util.find_spec("unifl.world")
    folder = Path(next(iter(spec.submodule_search_locations or []), ".")) / "assets" if spec else Path()
    parts = [
        "pipeline/model_index.json",
        "rewards/levels.json",
        "critics/trunk.safetensors",
        "baselines.json",
    ]
    parts += [f"judges/{name}.safetensors" for name in ("annotator", "validation", "gold")]
    missing = [part for part in parts if not (folder / part).exists()]
    if missing:
        advice = "install from a wheel or a complete checkout, or: unifl world build FOLDER"
        return Check("note", "embedded world", f"missing: {', '.join(missing)}", advice)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Check("ok", "embedded world", f"{size / 1e6:.1f} MB of weights")


def room(folder: str) -> Check:
    """Free disk space where runs go."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if free < _ROOM:
        return Check(
            "note", "disk", found, "little for checkpoints: write elsewhere, or lower checkpoints_total_limit"
        )
    return Check("ok", "disk", found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(ch for ch in part if ch.isdigit()) or 0) for part in parts)
