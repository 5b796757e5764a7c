"""Scorers for tests of the service: a number that gives every mixing-up away, and faulty ones."""

from __future__ import annotations

import hashlib
import os
import time

import torch

from unifl.feedback import as_feedback


def hashed(images, prompts):
    """A number in [0, 1) from every bit of each picture and its prompt; exact in float32."""
    return torch.tensor([_number(image, prompt) for image, prompt in zip(images, prompts, strict=True)])


def slow_hashed(images, prompts):
    """The same, after 20 ms for each picture in which other threads may run; SECONDS changes that."""
    time.sleep(float(os.environ.get("SECONDS", "0.02")) * len(images))
    return hashed(images, prompts)


def faulty(images, prompts):
    """Wrong where the first prompt of a batch says so; right otherwise."""
    if "crash" in prompts:
        raise RuntimeError("the scorer fell over")
    found = hashed(images, prompts)
    if "nan" in prompts:
        found[prompts.index("nan")] = float("nan")
    return found[:-1] if "count" in prompts else found


def declared(function, **kwargs):
    """As the service gets it from a recipe."""
    return as_feedback(function, name=kwargs.pop("name", function.__name__), differentiable=False, **kwargs)


def _number(image, prompt):
    content = image.float().cpu().contiguous().numpy().tobytes() + prompt.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:3], "big") / 2**24
