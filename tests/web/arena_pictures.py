"""Pictures whose colour tells the model."""

from __future__ import annotations

import json

from PIL import Image

COLOURS = {"base": (200, 60, 40), "good": (60, 160, 60), "better": (40, 80, 200)}


def draw(folder, model, prompts, *, size=(96, 96)):
    """A folder as `unifl generate` writes it."""
    folder.mkdir(parents=True)
    rows = []
    for number, prompt in enumerate(prompts):
        Image.new("RGB", size, COLOURS[model]).save(folder / f"{number:05d}_0.png")
        row = {"file_name": f"{number:05d}_0.png", "prompt": prompt, "seed": number, "model": model}
        rows.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows))
    return folder
