"""What every test runs under: one thread, no hub, no torchvision."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before anything imports torch, transformers or diffusers. Threads that compete for cores cost more than they
# bring, results are bit for bit equal only for equal threads, and torchvision must never become a dependency.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
sys.modules["torchvision"] = None  # type: ignore[assignment]

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.set_num_interop_threads(1)

# No deadline: a shared machine is slow at times. Derandomised: a red suite is red again when it is rerun.
settings.register_profile("unifl", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("unifl")


sys.path.insert(0, str(Path(__file__).parent))  # for tiny_checkpoints and preference_files


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a tiny checkpoint by its name in `tiny_checkpoints`; made once, not to be written to."""
    made = {}

    def find(name: str) -> str:
        if name not in made:
            from tiny_checkpoints import save_checkpoint

            made[name] = str(save_checkpoint(name, tmp_path_factory.mktemp(name)))
        return made[name]

    return find
