"""What a reward server and its clients say to each other: pictures go exactly, and an answer names its question.

A question is a safetensors body of two tensors: `images`, (b, 3, h, w) as float32 or, where that is exact, as uint8;
and `question`, the bytes of JSON with a random `id` and the `prompts`. Nothing in it is compressed, so nothing grows
when it is read, but for bytes that become floats. Its SHA-256 covers id, prompts and pictures. The answer is JSON
with `id`, `digest`, `fingerprint` and `scores`; a client that finds its own id and digest in it knows what it answers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unifl.errors import UserError

CARD, HEALTH, SCORE = "/card", "/health", "/score"
CONTENT_TYPE = "application/octet-stream"
TOKEN_VARIABLE = "UNIFL_REWARD_TOKEN"
_HEADER_BYTES = 4096  # two tensors take about 200
_ESCAPED = 6  # JSON writes a character as up to six bytes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one question may hold."""

    pictures: int = 64
    pixels: int = 2048 * 2048
    """Of one picture."""
    prompt_bytes: int = 16_384
    """Of one prompt in UTF-8."""
    body_bytes: int = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server says of its scorer.

    Attributes:
        name: Of the scorer.
        needs: Subset of {"prompt"}.
        range: Smallest and largest score, or None.
        scale: What numbers look like, in words; "" where nobody wrote it down.
        fingerprint: Of its weights and code; the same after a restart with the same scorer.
        batch_size: Pictures that it sees at once.
        limits: Of a question.
    """

    name: str
    needs: tuple[str, ...]
    range: tuple[float, float] | None
    scale: str
    fingerprint: str
    batch_size: int
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Pictures as they came, with their prompts and what an answer has to repeat."""

    identity: str
    digest: str
    images: Shaped[Tensor, "b 3 h w"]
    prompts: list[str]


def pack(images: Float[Tensor, "b 3 h w"], prompts: Sequence[str], identity: str) -> bytes:
    """A question as bytes."""
    pictures = images.detach().float().cpu().contiguous()
    eight = _in_eight_bits(pictures)
    text = json.dumps({"id": identity, "prompts": list(prompts)}).encode()
    return save(
        {
            "images": pictures if eight is None else eight,
            "question": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
    )


def unpack(body: bytes, limits: Limits) -> Question:
    """Read a question, looking at sizes first.

    Raises:
        UserError: Bytes that are no question, or more of something than the limits allow.
    """
    tensors = _tensors(body)
    images, text = tensors["images"], tensors["question"]
    _check_images(images, limits)
    if text.dtype != torch.uint8 or text.ndim != 1:
        raise UserError("`question` is not a row of bytes; send JSON as uint8")
    if len(text) > _HEADER_BYTES + _ESCAPED * limits.prompt_bytes * len(images):
        raise UserError(f"the prompts take {len(text)} bytes; send at most {limits.prompt_bytes} a prompt")
    identity, prompts = _words(text)
    if len(prompts) != len(images):
        raise UserError(f"there are {len(images)} pictures and {len(prompts)} prompts; send one for each")
    longest = max(len(prompt.encode(errors="surrogatepass")) for prompt in prompts)
    if longest > limits.prompt_bytes:
        raise UserError(f"a prompt has {longest} bytes; send at most {limits.prompt_bytes}")
    return Question(identity=identity, digest=digest(body), images=images, prompts=prompts)


def digest(body: bytes) -> str:
    """SHA-256 of a question, as hexadecimal digits."""
    return hashlib.sha256(body).hexdigest()


def as_numbers(images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures as float32 in [0, 1]; bytes as `to_tensor` makes them, bit for bit.

    They are divided where they are, which has to be the CPU: a GPU multiplies by 1/255.
    """
    return images.float() / 255 if images.dtype == torch.uint8 else images


def at_once(limits: Limits, height: int, width: int) -> int:
    """Float pictures of one size that fit into a question, at least 1."""
    each = 4 * 3 * height * width + _ESCAPED * limits.prompt_bytes
    return max(1, min(limits.pictures, (limits.body_bytes - 2 * _HEADER_BYTES) // each))


def _in_eight_bits(images: Float[Tensor, "b 3 h w"]) -> Tensor | None:
    """The bytes that pictures were made of, or None where floats are not multiples of 1/255."""
    # a row of each tells most floats apart, and costs nothing
    for part in (images[:, :, :1], images):
        rounded = (part * 255).round().clamp(0, 255)
        if not torch.equal(rounded / 255, part):
            return None
    return rounded.to(torch.uint8)


def _tensors(body: bytes) -> dict[str, Tensor]:
    if len(body) < 8 or struct.unpack("<Q", body[:8])[0] > _HEADER_BYTES:
        raise UserError(
            f"the body is no question; it starts with a safetensors header of {_HEADER_BYTES} bytes at most"
        )
    try:
        tensors = load(body)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"the body is no question: {error}; send safetensors") from error
    if tensors.keys() != {"images", "question"}:
        raise UserError(f"the body holds {', '.join(sorted(tensors)) or 'nothing'}; send images and question")
    return tensors


def _check_images(images: Tensor, limits: Limits) -> None:
    if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; send (b, 3, h, w) as float32 or uint8"
        )
    count, _, height, width = images.shape
    if not 1 <= count <= limits.pictures:
        raise UserError(f"the question has {count} pictures; send 1 to {limits.pictures}")
    if not 1 <= height * width <= limits.pixels:
        raise UserError(f"pictures have {height} x {width} px; send 1 to {limits.pixels} pixels")


def _words(text: Tensor) -> tuple[str, list[str]]:
    try:
        found: Any = json.loads(bytes(text.numpy()))
        identity, prompts = found["id"], found["prompts"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"`question` cannot be read ({type(error).__name__}); send JSON with id and prompts"
        ) from error
    if not isinstance(identity, str) or not 1 <= len(identity) <= 100:
        raise UserError("the id of a question is no string of 1 to 100 characters; send one")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError("the prompts are no list of strings; send one for each picture")
    return identity, prompts
