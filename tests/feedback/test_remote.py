"""The client against servers that misbehave, each in its own way."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from reward_service import exact, hashed
from unifl.assembly import resolve
from unifl.assembly.part import Part
from unifl.errors import FeedbackFailed, UserError
from unifl.feedback import require_gradient
from unifl.feedback.remote import RemoteReward, read_token
from unifl.feedback.wire import Limits, Served, as_numbers, unpack

CARD = asdict(
    Served(name="far", needs=("prompt",), range=(0.0, 1.0), scale="", fingerprint="f" * 32, batch_size=4)
)
IMAGES, PROMPTS = exact(3, 3, 8, 8), ["a", "b", "c"]


def right(body):
    question = unpack(body, Limits())
    scores = hashed(as_numbers(question.images), question.prompts).tolist()
    answer = {"id": question.identity, "digest": question.digest, "fingerprint": "f" * 32, "scores": scores}
    return 200, answer


def but(**changes):
    return lambda body: (200, right(body)[1] | changes)


@contextmanager
def server(*script, card=CARD):
    """Answers questions by the script, a function of the body each, and rightly once that is at its end."""
    turns, asked = list(script), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(200, card)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((body, self.headers.get("Authorization")))
            turn = turns.pop(0) if turns else right
            found = turn(body)
            if found is None:
                self.close_connection = True
            else:
                self.answer(*found)

        def answer(self, status, content, headers=()):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in dict(headers).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content)
            except OSError:
                self.close_connection = True

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}", asked
        finally:
            running.shutdown()
            thread.join()


def test_a_right_answer_is_the_scorers_own():
    with server() as (url, asked):
        far = RemoteReward(url)
        assert torch.equal(far(IMAGES, PROMPTS), hashed(IMAGES, PROMPTS))
        assert (far.name, far.needs, far.range, far.differentiable) == ("far", {"prompt"}, (0, 1), False)
        with pytest.raises(UserError, match="ReFL needs a gradient through the feedback 'far'"):
            require_gradient(far, method="ReFL")
        assert len(asked) == 1 and far(IMAGES[:0], []).shape == (0,)


def test_many_pictures_become_several_questions_with_ids_of_their_own():
    with server(card=CARD | {"limits": asdict(Limits(pictures=2))}) as (url, asked):
        assert torch.equal(RemoteReward(url)(IMAGES, PROMPTS), hashed(IMAGES, PROMPTS))
    ids = [unpack(body, Limits()).identity for body, _ in asked]
    assert len(ids) == 2 and len(set(ids)) == 2 and all(len(identity) == 32 for identity in ids)


@pytest.mark.parametrize(
    "trouble",
    [
        lambda body: None,  # the connection is closed
        lambda body: (503, {"detail": "full"}),
        lambda body: (503, {"detail": "full"}, {"Retry-After": "0"}),
        lambda body: (502, b"<html>proxy</html>"),
    ],
)
def test_trouble_on_the_way_is_tried_again_with_the_same_question(trouble):
    with server(trouble, trouble) as (url, asked):
        assert torch.equal(RemoteReward(url)(IMAGES, PROMPTS), hashed(IMAGES, PROMPTS))
    assert len(asked) == 3 and len({body for body, _ in asked}) == 1


def test_the_server_may_say_how_long_to_stay_away():
    with server(lambda body: (503, {}, {"Retry-After": "1"})) as (url, _):
        far = RemoteReward(url)
        start = time.monotonic()
        far(IMAGES, PROMPTS)
        assert time.monotonic() - start >= 1


def test_a_late_answer_is_asked_for_again():
    def late(body):
        time.sleep(1.0)
        return right(body)

    with server(late) as (url, asked):
        assert torch.equal(RemoteReward(url, timeout=0.3)(IMAGES, PROMPTS), hashed(IMAGES, PROMPTS))
        assert len(asked) == 2


def test_after_its_patience_the_client_gives_up():
    with server(*[lambda body: (503, {"detail": "the queue is full"})] * 100) as (url, _):
        far = RemoteReward(url, patience=0.8)
        start = time.monotonic()
        with pytest.raises(FeedbackFailed, match=r"no answer in time \(status 503: the queue is full\)"):
            far(IMAGES, PROMPTS)
        assert time.monotonic() - start < 1.5


def test_an_answer_that_trickles_runs_out_of_time(monkeypatch):
    """Each byte comes in time, and the whole does not."""
    with server() as (url, _):
        far = RemoteReward(url, timeout=0.3, patience=0.8)

        def trickling(self, *_):
            while True:
                time.sleep(0.05)
                yield b" "

        monkeypatch.setattr("httpx2.Response.iter_raw", trickling)
        start = time.monotonic()
        with pytest.raises(FeedbackFailed, match="no whole answer within"):
            far(IMAGES, PROMPTS)
        assert time.monotonic() - start < 1.5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (but(scores=[0.1, 0.2]), r"returned shape \(2,\) for 3 pictures"),
        (but(scores=[0.1, 0.2, float("nan")]), "returned nan"),
        (but(scores=[0.1, 0.2, float("inf")]), "returned inf"),
        (but(scores=["x", "y", "z"]), "are no numbers"),
        (but(scores=None), "are no numbers"),
        (but(id="0" * 32), "answered another question"),
        (but(digest="0" * 64), "answered another question"),
        (but(fingerprint="0" * 32), "serves another scorer than at the start"),
        (lambda body: (200, {}), "answered another question"),
        (lambda body: (200, b"<html>"), "answers no JSON"),
        (lambda body: (200, b"[" * 100_000), "answers no JSON"),
        (lambda body: (200, []), "answers list"),
        (lambda body: (200, b" " * 2_000_000), "more than 1000000 bytes"),
        (lambda body: (500, {"detail": "the scorer\nfell over"}), r"status 500\): the scorer fell over"),
    ],
)
def test_a_wrong_answer_is_an_error_and_not_tried_again(fault, message):
    with server(fault) as (url, asked):
        far = RemoteReward(url)
        with pytest.raises(FeedbackFailed, match=message):
            far(IMAGES, PROMPTS)
        assert len(asked) == 1


def test_the_answer_to_an_earlier_question_is_found_out():
    """A server, or what stands before it, that is one answer behind."""
    kept = []

    def behind(body):
        kept.append(right(body))
        return kept[-2] if len(kept) > 1 else kept[-1]

    with server(behind, behind) as (url, _):
        far = RemoteReward(url)
        far(IMAGES, PROMPTS)
        with pytest.raises(FeedbackFailed, match="answered another question"):
            far(IMAGES, PROMPTS)  # the very same pictures: only the id tells


REFUSALS = {
    400: r"refuses what it is asked \(status 400\): a prompt is long; change that",
    401: "refuses the token; set UNIFL_REWARD_TOKEN or token_file",
    403: "refuses the token; set UNIFL_REWARD_TOKEN or token_file",
    404: r"is no reward server \(status 404\).*give the address that `unifl serve-reward` prints",
    405: r"is no reward server \(status 405\)",
    409: r"refuses what it is asked \(status 409\)",
    411: r"refuses what it is asked \(status 411\)",
    413: r"refuses what it is asked \(status 413\): a prompt is long",
    415: r"refuses what it is asked \(status 415\)",
    422: r"refuses what it is asked \(status 422\): a prompt is long",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_a_mistake_before_the_first_answer_and_a_failure_after_it(status):
    def refuses(body):
        return status, {"detail": "a prompt is long"}

    with server(refuses, right, refuses, right) as (url, asked):
        far = RemoteReward(url)
        with pytest.raises(UserError, match=REFUSALS[status]):
            far(IMAGES, PROMPTS)
        assert torch.equal(far(IMAGES, PROMPTS), hashed(IMAGES, PROMPTS))
        with pytest.raises(FeedbackFailed, match=REFUSALS[status]):  # at which a run is saved
            far(IMAGES, PROMPTS)
        assert torch.equal(far(IMAGES, PROMPTS), hashed(IMAGES, PROMPTS))
        assert len(asked) == 4  # none was tried again


def test_a_token_is_sent_and_is_one(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("secret-of-twenty-letters\n")
    with server() as (url, asked):
        RemoteReward(url, token_file=str(file))(IMAGES, PROMPTS)
        monkeypatch.setenv("UNIFL_REWARD_TOKEN", "another-of-twenty-letters")
        RemoteReward(url)(IMAGES, PROMPTS)
    assert [token for _, token in asked] == [
        "Bearer secret-of-twenty-letters",
        "Bearer another-of-twenty-letters",
    ]
    for bad in ("short", "with a blank in its twenty letters", "nicht-aus-zwanzig-Büchstaben"):
        file.write_text(bad)
        with pytest.raises(UserError, match="can be guessed or sent wrongly"):
            read_token(file)
    with pytest.raises(UserError, match="cannot read the token"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("127.0.0.1:8600", {}, "no address of a reward server"),
        ("ftp://host", {}, "no address of a reward server"),
        ("http://", {}, "no address of a reward server"),
        ("http://host:99999", {}, "no address of a reward server"),
        ("http://me:secret@host", {}, "no address of a reward server"),
        ("http://host", {"timeout": 0}, "must be above 0"),
    ],
)
def test_an_address_that_cannot_be_is_refused(url, settings, message):
    with pytest.raises(UserError, match=message):
        RemoteReward(url, **settings)


def test_a_server_that_is_not_there_or_is_none(monkeypatch):
    monkeypatch.setattr("unifl.feedback.remote._TO_CONNECT", 0.5)
    with pytest.raises(
        UserError, match="no reward server answers at http://127.0.0.1:9 .*unifl serve-reward"
    ):
        RemoteReward("http://127.0.0.1:9")
    with server(card={"name": "something else"}) as (url, _), pytest.raises(UserError):
        RemoteReward(url)


def test_a_recipe_names_one_and_may_insist_on_its_fingerprint():
    with server() as (url, _):
        far = resolve.feedback(f"remote:{url}", name="mine")
        assert isinstance(far, RemoteReward) and far.name == "mine"
        with pytest.raises(UserError, match="serves far with fingerprint f+, and 0000 is asked for"):
            resolve.feedback(Part(path=f"remote:{url}", kwargs={"fingerprint": "0000"}), name="mine")
        with pytest.raises(
            UserError, match="its arguments are timeout, patience, token_file and fingerprint"
        ):
            resolve.feedback(Part(path=f"remote:{url}", kwargs={"token": "x"}), name="mine")
    assert not resolve.is_file(f"remote:{url}")
