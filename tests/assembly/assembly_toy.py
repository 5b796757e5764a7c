"""What toy recipes name: rewards, critics, a judge and data, and a folder in which all of it lies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import nn

from unifl.data import Judged, Pair, Sample
from unifl.evaluation.judge import JUDGE_KEYS
from unifl.feedback import as_feedback, clipped, normalised, weighted_sum
from unifl.testing import tiny_folder

SIDE = 32
PROMPTS = ["a red circle", "a blue square", "a small cat", "a large dog"]


def red(images, prompts):
    return images[:, 0].mean((1, 2))


def red_alone(images):
    return images[:, 0].mean((1, 2))


def counted(images, prompts):
    return (images > 0.5).float().mean((1, 2, 3))


def checkered(images):
    """Share of the contrast that is a chequered pattern of single pixels: noise of high frequency raises it."""
    rows, shifted = images[..., ::2, :], images[..., 1::2, :]
    board = (rows[..., ::2] - rows[..., 1::2] - shifted[..., ::2] + shifted[..., 1::2]) / 4
    return 100 * board.square().mean((1, 2, 3)) / images.var((2, 3)).mean(1)


def side(images, prompts):
    return images.mean((1, 2, 3)) * 0 + images.shape[-1]


def not_a_number(images, prompts):
    return images.mean((1, 2, 3)) * float("nan")


def scaled(factor):
    return lambda images, prompts: factor * red(images, prompts)


class RewardNet(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.convolution = nn.Conv2d(3, 4, 3)
        self.scale = scale

    def forward(self, images, prompts):
        return self.scale * self.convolution(images).mean((1, 2, 3))


def mixed(factor):
    first, second = (as_feedback(RewardNet(scale), name=str(scale)) for scale in (1.0, 2.0))
    inner = weighted_sum({"a": first, "b": clipped(second, low=-9.0, high=9.0)}, {"a": 1.0, "b": factor})
    return normalised(inner, mean=0.0, std=2.0)


class BlurCritic:
    name = "blur"
    needs = frozenset({"image"})

    def __init__(self, needs=("image",)):
        self.needs = frozenset(needs)

    def __call__(self, images, batch):
        return (F.avg_pool2d(images, 4) - F.avg_pool2d(batch.images, 4)).square().flatten(1).mean(1)

    def pseudo(self, batch):
        return batch


class Reader:
    """A judge that likes light pictures."""

    def __call__(self, images, prompts):
        light = images.mean((1, 2, 3)).clamp(0, 1)
        return dict.fromkeys(JUDGE_KEYS, light)

    def features(self, images):
        return F.avg_pool2d(images, 8).flatten(1)


def _sample(index):
    image = torch.full((3, SIDE, SIDE), 0.2)
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[0, 8:20, 8 : 16 + 4 * index] = True
    image[index % 3, mask[0]] = 0.9
    return Sample(image, PROMPTS[index], mask, torch.tensor([index % 2]), mask[0].long())


SAMPLES = [_sample(index) for index in range(len(PROMPTS))]
PAIRS = [Pair(sample.prompt, sample.image, sample.image.flip(0), user="ada") for sample in SAMPLES]
JUDGED = [Judged(sample.prompt, sample.image, float(index % 2)) for index, sample in enumerate(SAMPLES)]


def write_pictures(folder: Path, *, annotated: bool = True, side: int = SIDE) -> Path:
    folder.mkdir()
    rows = []
    for index, sample in enumerate(SAMPLES):
        array = (sample.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(array).resize((side, side)).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": sample.prompt})
        if annotated:
            np.savez(folder / f"{index}.npz", masks=sample.masks.numpy(), labels=sample.labels.numpy())
            rows[-1]["instances"] = f"{index}.npz"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def refl_recipe(**changes):
    recipe = {
        "output_dir": "runs/refl",
        "model": {"pretrained_model_name_or_path": "tiny", "train": {"kind": "lora", "rank": 2}},
        "method": {"kind": "refl", "reward": "red", "num_steps": 3, "stop": [0, 1], "source": "prompts"},
        "rewards": {"red": "assembly_toy:red"},
        "data": {"prompts": "prompts.txt"},
        "training": {"max_train_steps": 2, "train_batch_size": 2, "learning_rate": 1e-2},
        "sampling": {"num_steps": 2, "guidance": 1.0},
    }
    return recipe | changes


def make_workspace(folder: Path) -> Path:
    """A folder with a tiny model, prompts, pictures and recipes."""
    tiny_folder("sd15", folder / "tiny")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "empty.txt").write_text("\n \n")
    write_pictures(folder / "pictures")
    write_pictures(folder / "plain", annotated=False)
    write_pictures(folder / "broken", annotated=False)
    (folder / "broken" / "2.png").write_bytes(b"no picture")
    write_pictures(folder / "mismatch")
    np.savez(folder / "mismatch" / "1.npz", masks=np.ones((1, 8, 8), np.uint8), labels=np.zeros(1, int))
    (folder / "other").mkdir()
    (folder / "other" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (folder / "refl.yaml").write_text(yaml.safe_dump(refl_recipe()))
    (folder / "structure.yaml").write_text(yaml.safe_dump(structure_recipe()))
    return folder


def structure_recipe():
    terms = {"num_steps": 4, "start": 3, "stop": [0, 1], "weights": {"structure": 1.0}, "source": "images"}
    return refl_recipe(
        output_dir="runs/structure",
        method={"kind": "unifl", "perceptual": terms},
        critics={"structure": {"path": "assembly_toy:BlurCritic", "kwargs": {"needs": ["masks"]}}},
        rewards={},
        data={"images": "pictures"},
    )
