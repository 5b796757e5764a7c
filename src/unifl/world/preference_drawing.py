"""Preference data of the embedded world from nothing: the packaged model draws, scripted people compare.

Drawing takes minutes. What is there when it is stopped stays, and the same call goes on to the same result.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.disk import write_atomically
from unifl.errors import UserError
from unifl.models import load_generator
from unifl.sampling import sample
from unifl.world.assets import PIPELINE, baselines, load_judge
from unifl.world.preferences import write_preferences
from unifl.world.scenes import sample_prompts

PROMPTS, PICTURES, SEED = 600, 4, 71
"""Training prompts, pictures of each, and the seed of prompts, noise and people."""
GUIDANCE = 2.0
"""At the model's best guidance the pictures of a prompt are too much alike for people to prefer one."""
STEPS = 20
AT_ONCE = 64
"""Pictures of a batch, after each of which drawing can be stopped."""
_SETTINGS, _DRAWN = "drawing.json", "drawn"


def draw_preferences(
    folder: Path,
    *,
    prompts: int = PROMPTS,
    pictures: int = PICTURES,
    guidance: float = GUIDANCE,
    seed: int = SEED,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw, compare and write; or go on with that; or find that it is done.

    Args:
        folder: Gets what `write_preferences` writes.
        prompts: How many.
        pictures: Of each prompt; people compare every two.
        guidance: w of u + w (c - u).
        seed: Of prompts, noise and people.
        progress: Called with (pictures drawn, pictures) after every batch.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: Numbers that make no sense, or a folder that holds data of other settings.
    """
    if prompts < 1 or pictures < 2:
        raise UserError(
            f"{prompts} prompts with {pictures} pictures leave nothing to compare; take at least 1 and 2"
        )
    _remember(folder, {"prompts": prompts, "pictures": pictures, "guidance": guidance, "seed": seed})
    if (folder / "metadata.jsonl").is_file():
        return False
    texts = sample_prompts(prompts, seed=seed, held_out=False)
    drawn = _drawn(folder, [text for text in texts for _ in range(pictures)], guidance, seed, progress)
    compared = drawn.reshape(prompts, pictures, *drawn.shape[1:])
    write_preferences(folder, load_judge("annotator"), compared, texts, seed=seed)
    shutil.rmtree(folder / _DRAWN, ignore_errors=True)
    return True


def _drawn(
    folder: Path, texts: list[str], guidance: float, seed: int, progress: Callable[[int, int], None] | None
) -> Float[Tensor, "n 3 h w"]:
    """One picture of each text, a file for each batch; unrounded, as people see them."""
    (folder / _DRAWN).mkdir(exist_ok=True)
    generator = load_generator(PIPELINE, roles=(), mixed_precision="bf16")
    spacing = baselines()[str(STEPS)]["best"]["spacing"]
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        file = folder / _DRAWN / f"{start:06d}.npy"
        some = texts[start : start + AT_ONCE]
        if not file.is_file():
            found = sample(
                generator,
                some,
                seed=seed,
                indices=range(start, start + len(some)),
                num_steps=STEPS,
                guidance=guidance,
                spacing=spacing,
                batch_size=AT_ONCE,
            )
            content = io.BytesIO()
            np.save(content, found.numpy())
            write_atomically(file, content.getvalue())
        parts.append(torch.from_numpy(np.load(file)))
        if progress is not None:
            progress(start + len(some), len(texts))
    return torch.cat(parts)


def _remember(folder: Path, settings: dict[str, int | float]) -> None:
    """Write down the settings, or find that they are those of the folder.

    Raises:
        UserError: They are others, or the folder holds something else.
    """
    path = folder / _SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            raise UserError(f"{folder} holds preferences of other settings ({told}); name another folder")
        return
    if (folder / "metadata.jsonl").exists():
        raise UserError(f"{folder} holds data that this command did not write; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(settings).encode())
