"""Questions as bytes: exact both ways, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

from reward_service import exact, rounded
from unifl.data.pictures import to_tensor
from unifl.errors import UserError
from unifl.feedback.wire import Limits, as_numbers, at_once, digest, pack, unpack

PROMPTS = ["a cat", "", "ein Bär \ud800 \U0001f43b"]


@pytest.mark.parametrize("kind", [exact, rounded])
def test_pictures_and_prompts_come_back_bit_for_bit(kind):
    images = kind(3, 3, 7, 5)
    body = pack(images, PROMPTS, "abc")
    question = unpack(body, Limits())
    assert torch.equal(as_numbers(question.images), images)
    assert (question.identity, question.prompts, question.digest) == ("abc", PROMPTS, digest(body))
    assert question.images.dtype == (torch.uint8 if kind is rounded else torch.float32)


def test_every_byte_becomes_the_float_that_files_give():
    from PIL import Image

    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 256).expand(1, 3, 1, 256)
    picture = Image.fromarray(ramp[0].permute(1, 2, 0).numpy())
    assert torch.equal(as_numbers(ramp)[0], to_tensor(picture))


def test_floats_beyond_the_range_stay_as_they_are():
    images = torch.tensor([-0.5, 1.5, 2.0]).reshape(1, 3, 1, 1)
    assert torch.equal(as_numbers(unpack(pack(images, ["x"], "a"), Limits()).images), images)


def test_id_prompt_and_pixels_are_all_in_the_digest():
    images = rounded(1, 3, 4, 4)
    changed = images.clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    bodies = [
        pack(images, ["a"], "1"),
        pack(images, ["b"], "1"),
        pack(images, ["a"], "2"),
        pack(changed, ["a"], "1"),
    ]
    assert len({digest(body) for body in bodies}) == 4


def _question(text=None, images=None, **more):
    text = json.dumps({"id": "a", "prompts": ["x"]}) if text is None else text
    content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return save(
        {"images": torch.zeros(1, 3, 2, 2) if images is None else images, "question": content, **more}
    )


SMALL = Limits(pictures=2, pixels=16, prompt_bytes=8)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is no question"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no question"),
        ((10**9).to_bytes(8, "little") + b"{" * 100, "starts with a safetensors header"),
        ((100).to_bytes(8, "little") + b"[" * 100, "is no question"),
        (_question()[:-1], "is no question"),
        (_question() + b"x", "is no question"),
        (_question(more=torch.zeros(1)), "holds images, more, question"),
        (save({"images": torch.zeros(1, 3, 2, 2)}), "holds images"),
        (_question(images=torch.zeros(1, 3, 2, 2, dtype=torch.float64)), "torch.float64"),
        (_question(images=torch.zeros(1, 4, 2, 2)), r"shape \(1, 4, 2, 2\)"),
        (_question(images=torch.zeros(3, 2, 2)), r"shape \(3, 2, 2\)"),
        (_question(images=torch.zeros(3, 3, 2, 2)), "has 3 pictures; send 1 to 2"),
        (_question(images=torch.zeros(0, 3, 2, 2)), "has 0 pictures"),
        (_question(images=torch.zeros(1, 3, 0, 2)), "0 x 2 px"),
        (_question(images=torch.zeros(1, 3, 5, 4)), "5 x 4 px; send 1 to 16 pixels"),
        (_question("nonsense"), "cannot be read"),
        (_question("[" * 100_000), "prompts take 100000 bytes"),
        (_question("[" * 4000), "cannot be read"),
        (_question("[]"), "cannot be read"),
        (_question('{"id": 1, "prompts": ["x"]}'), "id of a question"),
        (_question('{"id": "", "prompts": ["x"]}'), "id of a question"),
        (_question('{"id": "a", "prompts": "x"}'), "no list of strings"),
        (_question('{"id": "a", "prompts": [3]}'), "no list of strings"),
        (_question('{"id": "a", "prompts": ["x", "y"]}'), "1 pictures and 2 prompts"),
        (_question('{"id": "a", "prompts": ["123456789"]}'), "a prompt has 9 bytes; send at most 8"),
    ],
)
def test_what_is_no_question_is_refused_with_the_reason(body, message):
    with pytest.raises(UserError, match=message):
        unpack(body, SMALL)


@pytest.mark.parametrize("size", [1, 64, 512, 2048])
def test_as_many_pictures_go_at_once_as_fit(size):
    limits = Limits(prompt_bytes=10, body_bytes=2 * 12 * 2048 * 2048)
    many = at_once(limits, size, size)
    assert 1 <= many <= limits.pictures
    body = pack(exact(many, 3, size, size), ["\ud800" * 3] * many, "x" * 32)
    assert len(body) <= limits.body_bytes
