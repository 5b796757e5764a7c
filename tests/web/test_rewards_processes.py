"""The reward service in processes of its own: killed clients, a restarted server, throughput."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from reward_service import exact, hashed, slow_hashed, start_process, until_true
from unifl.feedback.remote import RemoteReward

HERE = Path(__file__).parents[1]
CLIENTS, KILLED, QUESTIONS = 8, 2, 40

CLIENT = """
import sys
import torch
from reward_service import exact, hashed, rounded
from unifl.feedback.remote import RemoteReward

torch.set_num_threads(1)
url, number, questions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
far = RemoteReward(url)
for turn in range(questions):
    seed = 1000 * number + turn
    kind, size, count = (exact, rounded)[turn % 2], (8, 16)[turn % 3 == 0], 1 + turn % 4
    images, prompts = kind(count, 3, size, size, seed=seed), [f"{seed} {at}" for at in range(count)]
    assert torch.equal(far(images, prompts), hashed(images, prompts)), f"question {seed} got another's answer"
    print(turn, flush=True)
"""


class Client:
    """A process that asks and checks, one question after the other."""

    def __init__(self, url, number):
        command = [sys.executable, "-c", CLIENT, url, str(number), str(QUESTIONS)]
        self.process = subprocess.Popen(
            command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.answered = 0
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for _ in self.process.stdout:
            self.answered += 1

    def end(self):
        complaints = self.process.stderr.read()
        code = self.process.wait(120)
        self.reader.join()
        return code, complaints


@pytest.mark.slow
def test_every_answer_belongs_to_its_question_though_clients_die_and_the_server_is_restarted():
    server, url = start_process("reward_service:slow_hashed", "--port", "0", "--batch-size", "4")
    clients = [Client(url, number) for number in range(CLIENTS)]
    try:
        until_true(lambda: all(client.answered >= 3 for client in clients), 120)
        for client in clients[:KILLED]:
            client.process.send_signal(signal.SIGKILL)
        server.send_signal(signal.SIGKILL)  # not even its socket is closed in order
        server.communicate()
        before = [client.answered for client in clients]
        assert max(before) < QUESTIONS
        time.sleep(0.5)
        server, _ = start_process(
            "reward_service:slow_hashed", "--port", url.rpartition(":")[2], "--batch-size", "4"
        )
        ends = [client.end() for client in clients]
        for (code, complaints), client in zip(ends[KILLED:], clients[KILLED:], strict=True):
            assert code == 0 and client.answered == QUESTIONS, complaints
        for (code, _), client in zip(ends[:KILLED], clients[:KILLED], strict=True):
            assert code == -signal.SIGKILL and client.answered < QUESTIONS
    finally:
        for process in [server, *(client.process for client in clients)]:
            process.kill()
        said = server.communicate()[0]
    assert "Traceback" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "pictures"), [(1, 16), (8, 4)])
def test_throughput_is_at_least_nine_tenths_of_calling_the_scorer(clients, pictures):
    """A scorer of 20 ms a picture: one client with batches, and eight with small questions."""
    server, url = start_process("reward_service:slow_hashed", "--port", "0")
    questions = 96 // (clients * pictures) + 1
    try:
        ratio = max(_ratio(url, clients, pictures, questions) for _ in range(3))  # others may use the machine
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    print(f"{clients} clients with {pictures} pictures: {ratio:.3f}")
    assert ratio >= 0.9


def _ratio(url, clients, pictures, questions):
    """Seconds in process over seconds served, for the same pictures."""
    reward = [RemoteReward(url) for _ in range(clients)]
    images, prompts = exact(pictures, 3, 64, 64), ["a cat"] * pictures
    start = time.perf_counter()
    for _ in range(questions * clients):
        slow_hashed(images, prompts)
    here = time.perf_counter() - start

    def ask(far):
        for _ in range(questions):
            assert torch.equal(far(images, prompts), hashed(images, prompts))

    threads = [threading.Thread(target=ask, args=(far,)) for far in reward]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return here / (time.perf_counter() - start)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_served_scorer_scores_a_folder_and_stops_when_told(tmp_path, how):
    """`unifl serve-reward` with a token, `unifl score remote:...`, and a signal."""
    import json

    from PIL import Image

    for number in range(3):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [json.dumps({"file_name": f"{number}.png", "prompt": "x"}) for number in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    token = {"UNIFL_REWARD_TOKEN": "twenty-letters-and-more"}
    server, url = start_process("colourfulness", "--port", "0", environment=token)
    try:
        command = [
            sys.executable,
            "-m",
            "unifl.cli",
            "score",
            str(tmp_path),
            f"far=remote:{url}",
            "colourfulness",
        ]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 2 and "refuses the token" in refused.stderr
        done = subprocess.run(command, env=os.environ | token, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        server.send_signal(how)
        said = server.communicate(timeout=60)[0]
    assert server.returncode == (0 if how == signal.SIGINT else -how), said
    assert "Traceback" not in said
    scores = [json.loads(row)["scores"] for row in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert all(score["far"] == score["colourfulness"] for score in scores) and scores[1]["far"] > 0
