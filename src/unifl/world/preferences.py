"""Preference data of the embedded world: several pictures of a prompt, and people who compare all pairs of them.

Everybody sees the scores of the annotator judge with an error of their own in every comparison, so that a picture may win
one and lose the next, as in data that people made.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unifl.disk import write_atomically
from unifl.world.annotator import NOISE, overall
from unifl.world.judges import WorldJudge

TIE = 0.01
"""Opinions nearer than that are a draw."""


def comparisons(
    scores: Float[Tensor, "p k"], prompts: Sequence[str], *, seed: int, noise: float = NOISE
) -> list[dict[str, Any]]:
    """All pairs of the k pictures of each prompt, each compared once by somebody.

    Args:
        scores: What the annotator judge says of each picture, in [0, 1].
        prompts: p prompts.
        seed: Of the people.
        noise: Standard deviation of one person's error about one picture.

    Returns:
        Rows in the columns of Pick-a-Pic, pictures as file names (`picture_name`).
    """
    rng = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        for first, second in itertools.combinations(range(scores.shape[1]), 2):
            seen = scores[number, [first, second]] + noise * torch.randn(2, generator=rng)
            lead = float(seen[0] - seen[1])
            label = 0.5 if abs(lead) < TIE else float(lead > 0)
            names = [picture_name(number, column) for column in (first, second)]
            rows.append(
                {
                    "caption": prompt,
                    "jpg_0": names[0],
                    "jpg_1": names[1],
                    "label_0": label,
                    "label_1": 1 - label,
                    "image_0_uid": names[0],
                    "image_1_uid": names[1],
                    "ranking_id": len(rows),
                }
            )
    return rows


def picture_name(prompt: int, column: int) -> str:
    """File name of one of the pictures of a prompt."""
    return f"pictures/{prompt:05d}-{column}.png"


@torch.no_grad()
def write_preferences(
    folder: Path,
    judge: WorldJudge,
    pictures: Float[Tensor, "p k 3 h w"],
    prompts: Sequence[str],
    *,
    seed: int,
) -> None:
    """Pictures, comparisons (`metadata.jsonl`), likes (`likes.jsonl`) and shares of wins (`scored.jsonl`).

    Args:
        folder: Gets the files; `metadata.jsonl` comes last.
        judge: The annotator.
        pictures: k of each prompt, in [0, 1].
        prompts: p prompts.
        seed: Of the people.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    scores = torch.stack([_overall(judge, column, prompts) for column in pictures.unbind(1)], 1)
    for number, row in enumerate(pictures):
        for column, picture in enumerate(row):
            pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / picture_name(number, column))
    rows = comparisons(scores, prompts, seed=seed)
    shares = win_shares(rows)
    likes = [
        {"prompt": prompt, "image": name, "liked": share > 0.5}
        for name, (prompt, share) in shares.items()
        if share != 0.5
    ]
    stored = [
        {
            "prompt": prompt,
            "file_name": name,
            "seed": 0,
            "model": "world:pipeline",
            "scores": {"people": share},
        }
        for name, (prompt, share) in shares.items()
    ]
    for name, lines in (("likes", likes), ("scored", stored), ("metadata", rows)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(folder / f"{name}.jsonl", text.encode())


def win_shares(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, float]]:
    """The prompt of each picture, and the share of its comparisons that it won; a draw counts half."""
    won: dict[str, list[float]] = {}
    prompts: dict[str, str] = {}
    for row in rows:
        for side in ("0", "1"):
            won.setdefault(row[f"jpg_{side}"], []).append(row[f"label_{side}"])
            prompts[row[f"jpg_{side}"]] = row["caption"]
    return {name: (prompts[name], sum(labels) / len(labels)) for name, labels in won.items()}


def _overall(judge: WorldJudge, images: Tensor, prompts: Sequence[str]) -> Float[Tensor, " p"]:
    parts = [
        overall(judge(images[rows : rows + 64], prompts[rows : rows + 64]))
        for rows in range(0, len(images), 64)
    ]
    return torch.cat(parts)
