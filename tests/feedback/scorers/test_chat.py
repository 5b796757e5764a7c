"""A judge behind HTTP, against a service on this machine that answers as it is told."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from unifl.errors import FeedbackFailed, UserError
from unifl.feedback import Feedback
from unifl.feedback.scorers import SCORERS, ChatJudge, open_scorer
from unifl.feedback.scorers.chat import NoAnswer
from unifl.feedback.scorers.questions import Malformed, choice, rating

AXES = "Alignment Score (1-5): {0}\nCoherence Score (1-5): {0}\nStyle Score (1-5): {0}"


def words(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def likely(**tokens):
    spread = [{"token": token, "logprob": math.log(value)} for token, value in tokens.items()]
    return {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": spread}]}}]}


@pytest.fixture
def service():
    """(address, what was asked, a place for the function that answers)."""
    asked, box = [], {"answer": lambda body: (200, words(AXES.format(3)))}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), body))
            code, found = box["answer"](body)
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked, box
    server.shutdown()
    server.server_close()


def pixels(body, at=0):
    """The picture of a question, as the service sees it."""
    part = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"][at]
    data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def question(body):
    return body["messages"][0]["content"][-1]["text"]


def test_every_answer_belongs_to_its_picture_and_prompt(service):
    address, asked, box = service
    box["answer"] = lambda body: (200, words(AXES.format(1 + pixels(body)[0, 0, 0] / 10)))
    judge = open_scorer("chat", weights="some-vlm", base=address + "/")
    assert isinstance(judge, Feedback) and judge.range == (1.0, 5.0) and judge.card is SCORERS["chat"]
    values = torch.tensor([0, 10, 20, 30, 40, 5, 15, 25, 35, 1, 2, 3])
    images = (values / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    prompts = [f"prompt {{{number}}}" for number in range(12)]
    torch.testing.assert_close(judge(images, prompts), 1 + values / 10)
    assert {path for path, *_ in asked} == {"/v1/chat/completions"}
    for _, _, body in asked:
        number = values.tolist().index(int(pixels(body)[0, 0, 0]))
        assert f"Caption: [prompt {{{number}}}]" in question(body) and body["model"] == "some-vlm"


def test_the_probability_of_yes(service):
    address, asked, box = service
    box["answer"] = lambda body: (200, likely(Yes=0.7, No=0.2))
    judge = open_scorer("chat", weights="some-vlm", base=address, asks="shows")
    assert judge(torch.zeros(1, 3, 4, 4), ["a dog"]).tolist() == pytest.approx([0.7])
    body = asked[0][2]
    assert question(body) == 'Does this figure show "a dog"? Please answer Yes or No.'
    assert (body["max_tokens"], body["logprobs"], body["temperature"]) == (1, True, 0.0)
    box["answer"] = lambda body: (200, likely(No=0.9))
    assert judge(torch.zeros(1, 3, 4, 4), ["a dog"]).tolist() == [0.0]
    box["answer"] = lambda body: (200, words("Yes"))
    quick = ChatJudge("some-vlm", address, asks="shows", tries=2, wait=0)
    with pytest.raises(NoAnswer, match="without log-probabilities; use a service that gives them"):
        quick([Image.new("RGB", (2, 2))], ["a"])


def test_malformed_answers_are_asked_again_and_then_a_clear_error(service):
    address, asked, box = service
    answers = [words("It is nice."), {"choices": []}, b"<html>", words(AXES.format(4))]
    box["answer"] = lambda body: (200, answers[len(asked) - 1])
    judge = ChatJudge("some-vlm", address, wait=0)
    assert judge([Image.new("RGB", (2, 2))], ["a"]) == [4.0]
    assert [body["temperature"] for _, _, body in asked] == [0.0, 0.7, 0.7, 0.7]
    box["answer"] = lambda body: (200, words("It is nice."))
    with pytest.raises(NoAnswer, match=r"some-vlm at .* after 4 tries: no score from 1 to 5 in 'It is nice"):
        judge([Image.new("RGB", (2, 2))], ["a"])
    feedback = open_scorer("chat", weights="some-vlm", base=address)
    feedback.function.wait = 0
    with pytest.raises(FeedbackFailed, match="'chat' gave no answer after 1 attempt .*after 4 tries"):
        feedback(torch.zeros(1, 3, 4, 4), ["a"])


def test_services_that_are_busy_are_asked_again_and_mistakes_are_not(service, monkeypatch):
    address, asked, box = service
    judge = ChatJudge("some-vlm", address, wait=0, key_variable="MY_KEY")
    codes = [429, 503, 200]
    box["answer"] = lambda body: (codes[len(asked) - 1], words(AXES.format(2)))
    monkeypatch.delenv("MY_KEY", raising=False)
    assert judge([Image.new("RGB", (2, 2))], ["a"]) == [2.0]
    assert "Authorization" not in asked[0][1]
    monkeypatch.setenv("MY_KEY", "secret")
    for code, message in (
        (401, "set MY_KEY to a valid one"),
        (404, "check the address .* and the model"),
        (400, "see that its model reads pictures"),
    ):
        asked.clear()
        box["answer"] = lambda body, code=code: (code, {"error": "no"})
        with pytest.raises(UserError, match=rf"answers {code} for some-vlm .*{message}") as caught:
            judge([Image.new("RGB", (2, 2))], ["a"])
        assert len(asked) == 1 and asked[0][1]["Authorization"] == "Bearer secret"
        assert "secret" not in str(caught.value)


def test_a_service_that_is_not_there():
    judge = ChatJudge("some-vlm", "http://127.0.0.1:9/v1", tries=2, wait=0)
    with pytest.raises(NoAnswer, match="after 2 tries: ConnectError"):
        judge([Image.new("RGB", (2, 2))], ["a"])


def test_preferences_that_do_not_survive_a_swap_count_as_none(service):
    address, _, box = service
    first = [Image.new("RGB", (2, 2), (value, 0, 0)) for value in (200, 100, 50, 9)]
    second = [Image.new("RGB", (2, 2), (value, 0, 0)) for value in (100, 200, 50, 9)]

    def redder(body):
        one, two = (int(pixels(body, at)[0, 0, 0]) for at in (0, 1))
        if one == 9:
            return 200, words("Same.")
        return 200, words("Image 1" if one >= two else "Image 2 is better")  # favours the first place

    box["answer"] = redder
    judge = ChatJudge("some-vlm", address, wait=0)
    assert judge.prefer(first, second, ["a", "b", "c", "d"]) == [1.0, 0.0, 0.5, 0.5]


def test_words_become_numbers_or_an_error():
    assert rating("Final Score: 4.5") == 4.5
    assert rating("**Alignment Score (1-5)**: 2\n**Coherence Score:** 3\nStyle Score : 4") == 3.0
    assert rating("Alignment Score (1-5): 1\nFinal Score: 3") == 3.0
    assert rating(AXES.format("2.694700002670288")) == pytest.approx(2.6947)
    for answer in ("", "5", "Final Score: 0.5", "Final Score: X", AXES.format(-3), AXES[:50].format(3)):
        with pytest.raises(Malformed):
            rating(answer)
    assert [choice(text) for text in ("image 1", "Image 2 is better.", "same")] == [1, 2, None]
    for answer in ("Image 3", "Image 1 or Image 2", ""):
        with pytest.raises(Malformed):
            choice(answer)


def test_what_cannot_be_asked(tmp_path):
    with pytest.raises(UserError, match="write it as http://localhost:8000/v1, as `base`"):
        open_scorer("chat", weights="some-vlm")
    with pytest.raises(UserError, match="needs the name of its model; give it as `weights`"):
        open_scorer("chat", base="http://localhost:1/v1")
    with pytest.raises(UserError, match="choose rates, shows or answers"):
        open_scorer("chat", weights="a", base="http://localhost:1/v1", asks="ranks")
    (tmp_path / "question.txt").write_text("Is it good?")
    with pytest.raises(UserError, match=r"lacks \{prompt\}"):
        open_scorer("chat", weights="a", base="http://localhost:1", question=str(tmp_path / "question.txt"))
    judge = ChatJudge("a", "http://localhost:1/v1")
    with pytest.raises(UserError, match="prompt 0 has 21,000 characters"):
        judge([Image.new("RGB", (2, 2))], ["a" * 21_000])
