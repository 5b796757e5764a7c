"""The reward service: what it answers, what it refuses, and who waits for whom."""

from __future__ import annotations

import http.client
import json
import re
import runpy
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch

from reward_service import Gate, declared, exact, faulty, hashed, rounded, serving, until_true
from unifl.errors import FeedbackFailed, UserError
from unifl.feedback import BlackBoxFeedback, NetworkFeedback, as_feedback
from unifl.feedback.networks import RewardNetwork
from unifl.feedback.remote import RemoteReward
from unifl.feedback.wire import Limits, pack
from unifl.web.rewards import RewardServer, ServiceSettings, open_socket

TOKEN = "a-token-of-more-than-twenty-letters"


def post(url, body, **headers):
    return httpx2.post(f"{url}/score", content=body, headers=headers, timeout=30)


def question(prompt="x", images=None):
    images = exact(1, 3, 4, 4) if images is None else images
    return pack(images, [prompt] * len(images), "an-id")


@pytest.mark.parametrize("kind", [exact, rounded])
def test_answers_are_those_of_the_scorer_bit_for_bit(kind):
    torch.manual_seed(0)
    scorer = NetworkFeedback(RewardNetwork(), name="net")
    images, prompts = kind(5, 3, 32, 32), [f"a cat {number}" for number in range(5)]
    with serving(scorer, batch_size=8) as server, torch.no_grad():
        assert torch.equal(RemoteReward(server.url)(images, prompts), scorer(images, prompts))


def test_the_card_says_what_is_served():
    scorer = declared(hashed, needs_prompt=True, range=(0.0, 1.0))
    with serving(scorer, batch_size=7) as server:
        card = httpx2.get(f"{server.url}/card").json()
        assert card["name"] == "hashed" and card["needs"] == ["prompt"] and card["range"] == [0, 1]
        assert card["batch_size"] == 7 and len(card["fingerprint"]) == 32
        assert httpx2.get(f"{server.url}/health").json() == {"ready": True, "questions": 0}
        for path in ("/docs", "/openapi.json", "/redoc", "/score", "/../etc/passwd"):
            assert httpx2.get(server.url + path).status_code in (404, 405)
    with serving(as_feedback(hashed, range=(0.0, float("inf")))) as server:
        assert RemoteReward(server.url).range is None


def test_questions_of_several_clients_share_batches_and_no_answer_is_mixed_up():
    gate = Gate()
    with serving(gate.feedback(), batch_size=4) as server, ThreadPoolExecutor(8) as pool:
        far = RemoteReward(server.url)
        asked = [(exact(1, 3, 8, 8, seed=number), [f"p{number}"]) for number in range(8)]
        first = pool.submit(far, *asked[0])
        until_true(lambda: gate.batches)
        others = [pool.submit(far, *one) for one in asked[1:]]
        until_true(lambda: server.batcher.inside == 8)
        until_true(lambda: len(server.batcher._waiting) == 7)
        gate.open.set()
        for one, answer in zip(asked, [first, *others], strict=True):
            assert torch.equal(answer.result(30), hashed(*one))
    assert [len(batch) for batch in gate.batches] == [1, 4, 3]


def test_only_pictures_of_one_size_go_together_and_the_oldest_goes_first():
    gate = Gate()
    with serving(gate.feedback(), batch_size=4) as server, ThreadPoolExecutor(8) as pool:
        far = RemoteReward(server.url)
        sizes = [8, 4, 8, 4, 8]
        answers = [pool.submit(far, exact(1, 3, 8, 8), ["first"])]
        until_true(lambda: gate.batches)
        for number, size in enumerate(sizes):
            answers.append(pool.submit(far, exact(1, 3, size, size), [f"p{number}"]))
            until_true(lambda number=number: len(server.batcher._waiting) == number + 1)
        gate.open.set()
        assert all(answer.result(30).shape == (1,) for answer in answers)
    assert gate.batches == [["first"], ["p0", "p2", "p4"], ["p1", "p3"]]


def test_a_question_larger_than_a_batch_is_scored_a_batch_after_the_other():
    gate = Gate()
    gate.open.set()
    images, prompts = exact(10, 3, 4, 4), [str(number) for number in range(10)]
    with serving(gate.feedback(), batch_size=4) as server:
        assert torch.equal(RemoteReward(server.url)(images, prompts), hashed(images, prompts))
    assert gate.batches == [prompts[:4], prompts[4:8], prompts[8:]]


def test_a_scorer_waits_for_a_question_on_its_way_but_not_for_long():
    gate = Gate()
    gate.open.set()
    with serving(gate.feedback(), wait=0.3) as server:
        with (
            ThreadPoolExecutor(1) as pool,
            server.batcher.place(),
        ):  # somebody whose question is not there yet
            far = RemoteReward(server.url)
            start = time.monotonic()
            pool.submit(far, exact(1, 3, 4, 4), ["x"]).result(30)
            assert 0.3 <= time.monotonic() - start < 2
        start = time.monotonic()
        far(exact(1, 3, 4, 4), ["x"])
        assert time.monotonic() - start < 0.3  # nobody else is coming


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", "the scorer failed: RuntimeError: the scorer fell over"),
        ("nan", "FeedbackFailed: the feedback 'faulty' returned nan"),
        ("count", r"returned shape \(0,\) for 1 pictures"),
    ],
)
def test_a_question_that_fails_takes_no_other_with_it(fault, message):
    gate = Gate()
    both = declared(
        lambda images, prompts: (gate(images, prompts), faulty(images, prompts))[1], name="faulty"
    )
    with serving(both, batch_size=4) as server, ThreadPoolExecutor(4) as pool:
        far = RemoteReward(server.url)
        ahead = pool.submit(far, exact(1, 3, 8, 8), ["ahead"])
        until_true(lambda: gate.batches)
        answers = [pool.submit(far, exact(1, 3, 4, 4), [prompt]) for prompt in ("a", fault, "b")]
        until_true(lambda: len(server.batcher._waiting) == 3)
        gate.open.set()
        for prompt, answer in zip(("a", fault, "b"), answers, strict=True):
            if prompt == fault:
                with pytest.raises(FeedbackFailed, match=message):
                    answer.result(30)
            else:
                assert torch.equal(answer.result(30), hashed(exact(1, 3, 4, 4), [prompt]))
        assert ahead.result(30).shape == (1,)
    assert sorted(map(len, gate.batches)) == [1, 1, 1, 1, 3]


@pytest.mark.parametrize("kind", [declared, BlackBoxFeedback])
def test_a_question_that_the_scorer_does_not_take_is_refused_with_its_reason(kind):
    def picky(images, prompts):
        if "long" in prompts:
            raise UserError("the prompt is long; shorten it")
        return hashed(images, prompts)

    with serving(kind(picky)) as server:
        for _ in range(2):  # also when there was an answer
            refused = post(server.url, question("long"))
            assert refused.status_code == 422 and refused.json()["detail"] == "the prompt is long; shorten it"
            assert post(server.url, question()).status_code == 200
        far = RemoteReward(server.url)
        with pytest.raises(UserError, match=r"status 422\): the prompt is long; shorten it"):
            far(exact(1, 3, 4, 4), ["long"])
        assert torch.equal(far(exact(1, 3, 4, 4), ["x"]), hashed(exact(1, 3, 4, 4), ["x"]))


def test_a_full_queue_says_so_before_the_body_and_clients_come_back():
    gate = Gate()
    with serving(gate.feedback(), queue=2, batch_size=1) as server, ThreadPoolExecutor(4) as pool:
        far = RemoteReward(server.url)
        asked = [(exact(1, 3, 4, 4, seed=number), [f"p{number}"]) for number in range(4)]
        answers = [pool.submit(far, *one) for one in asked[:2]]
        until_true(lambda: server.batcher.inside == 2)
        refused = post(server.url, question())
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        assert "2 questions are waiting" in refused.json()["detail"]
        # only the head of a question is sent: nobody waits for the rest of it
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as line:
            line.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.1 503")
        assert server.batcher.inside == 2
        answers += [pool.submit(far, *one) for one in asked[2:]]
        time.sleep(0.3)
        gate.open.set()
        for one, answer in zip(asked, answers, strict=True):
            assert torch.equal(answer.result(30), hashed(*one))
        until_true(lambda: server.batcher.inside == 0)


def test_a_server_that_stops_answers_what_is_scored_and_refuses_what_waits():
    gate = Gate()
    with serving(gate.feedback(), batch_size=1) as server, ThreadPoolExecutor(2) as pool:
        scored = pool.submit(post, server.url, question("scored"))
        until_true(lambda: gate.batches)
        waits = pool.submit(post, server.url, question("waits"))
        until_true(lambda: len(server.batcher._waiting) == 1)
        server.should_exit = True
        refused = waits.result(30)
        assert refused.status_code == 503 and "stopping" in refused.json()["detail"]
        assert refused.headers["Retry-After"] == "1" and not scored.done()
        gate.open.set()
        assert scored.result(30).status_code == 200
    assert gate.batches == [["scored"]]
    with pytest.raises(httpx2.ConnectError):
        post(server.url, question())


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"Content-Length": str(10**12)}, 413, "the body has 1000000000000 bytes"),
        ({"Content-Length": "100", "Content-Encoding": "gzip"}, 415, "the body is compressed"),
        ({"Transfer-Encoding": "chunked"}, 411, "send the length"),
    ],
)
def test_what_its_headers_give_away_is_refused_without_its_body(headers, status, message):
    with serving(declared(hashed)) as server:
        line = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=10)
        line.putrequest("POST", "/score")
        for key, value in headers.items():
            line.putheader(key, value)
        line.endheaders()
        answer = line.getresponse()
        assert answer.status == status and message in json.loads(answer.read())["detail"]
        line.close()


def test_pictures_prompts_and_bombs_beyond_the_limits_are_refused():
    limits = Limits(pictures=2, pixels=64, prompt_bytes=100)
    with serving(declared(hashed), limits=limits) as server:
        for body, message in (
            (question("x" * 101), "a prompt has 101 bytes"),
            (question("x" * 2_000_000), "the prompts take"),
            (question(images=torch.zeros(3, 3, 4, 4)), "has 3 pictures"),
            (question(images=torch.zeros(1, 3, 9, 9)), "9 x 9 px"),
            (_png_bomb(), "is no question"),
            (b"", "is no question"),
        ):
            refused = post(server.url, body)
            assert refused.status_code == 422 and message in refused.json()["detail"], refused.text
        with pytest.raises(UserError, match="refuses what it is asked.*9 x 9 px"):
            RemoteReward(server.url)(torch.zeros(1, 3, 9, 9), ["x"])
        images = rounded(5, 3, 8, 8)
        assert torch.equal(RemoteReward(server.url)(images, list("abcde")), hashed(images, list("abcde")))


def _png_bomb():
    """A small file that a reader of pictures would make 300 MB of."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    return file.getvalue()


def test_a_body_that_does_not_come_frees_its_place():
    from unifl.feedback.wire import Served
    from unifl.web.rewards import Batcher, make_app

    batcher = Batcher(declared(hashed), batch_size=4, wait=0.0, queue=4)
    served = Served(name="x", needs=(), range=None, scale="", fingerprint="f", batch_size=4)
    app = make_app(batcher, served, body_seconds=0.3)
    import uvicorn

    listening = open_socket("127.0.0.1", 0, token=None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until_true(lambda: server.started)
        with socket.create_connection(listening.getsockname(), timeout=10) as line:
            line.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            until_true(lambda: batcher.inside == 1)
            assert line.recv(1000).startswith(b"HTTP/1.1 408")
            assert batcher.inside == 0
        with socket.create_connection(listening.getsockname(), timeout=10) as line:
            line.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            until_true(lambda: batcher.inside == 1)
        until_true(lambda: batcher.inside == 0, 0.25)  # gone, and sooner than the time is over
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        batcher.close()


def test_a_token_is_asked_of_everything_but_health(monkeypatch):
    with serving(declared(hashed), token=TOKEN) as server:
        assert httpx2.get(f"{server.url}/health").status_code == 200
        for given in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": "ä"},
        ):
            headers = {key: value.encode("latin-1") for key, value in given.items()}
            assert httpx2.get(f"{server.url}/card", headers=headers).status_code == 401
            assert httpx2.post(f"{server.url}/score", content=question(), headers=headers).status_code == 401
        with pytest.raises(UserError, match="refuses the token; set UNIFL_REWARD_TOKEN or token_file"):
            RemoteReward(server.url)
        monkeypatch.setenv("UNIFL_REWARD_TOKEN", TOKEN)
        images = exact(1, 3, 4, 4)
        assert torch.equal(RemoteReward(server.url)(images, ["x"]), hashed(images, ["x"]))


def test_other_machines_need_a_token_and_an_address_is_used_once():
    with pytest.raises(UserError, match="0.0.0.0 can be reached from other machines, and there is no token"):
        open_socket("0.0.0.0", 0, token=None)
    open_socket("0.0.0.0", 0, token=TOKEN).close()
    with open_socket("127.0.0.1", 0, token=None) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=f"cannot listen on 127.0.0.1, port {port}: another program has it"
        ):
            open_socket("127.0.0.1", port, token=None)
    with pytest.raises(UserError, match="cannot listen on 203.0.113.1"):
        open_socket("203.0.113.1", 0, token=TOKEN)


def test_a_scorer_of_latents_is_not_served():
    latent = as_feedback(hashed)
    latent = type(latent)(function=hashed, name="latent", space="latent")
    with pytest.raises(UserError, match="mine reads latents, and pictures are served"):
        RewardServer(latent, "mine", ServiceSettings())


def test_a_client_notices_another_scorer_behind_the_same_address():
    with serving(declared(hashed)) as server:
        far = RemoteReward(server.url)
        port = int(server.url.rpartition(":")[2])
    with (
        serving(NetworkFeedback(RewardNetwork(), name="net"), port=port),
        pytest.raises(FeedbackFailed, match="serves another scorer than at the start"),
    ):
        far(exact(1, 3, 32, 32), ["x"])


def test_the_code_on_the_page_about_scorers_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    assert any("RewardServer" in block for block in blocks)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scorers.py").write_text("\n".join(blocks))
    assert runpy.run_path("scorers.py")["far"].name == "sharpness"
