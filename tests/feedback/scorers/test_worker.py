"""A judge in a process of its own: answers, accidents, and an end that leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from unifl.errors import FeedbackFailed, UserError
from unifl.feedback import BlackBoxFeedback
from unifl.feedback.scorers import WorkerProcess
from unifl.feedback.scorers.worker import JudgeLost

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)  # handed on to the processes
PICTURES = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]


@pytest.fixture
def worker():
    found = WorkerProcess("process_judges:mean", {"scale": 2.0}, timeout=20.0)
    yield found
    found.close()


def is_alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until_gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


def test_it_answers_from_another_process_which_ends_when_closed(worker):
    assert worker.pid is None
    assert worker(PICTURES, ["a", "b", "c"]) == [20.0, 40.0, 60.0]
    first = worker.pid
    assert first != os.getpid() and is_alive(first)
    assert worker(PICTURES[::-1], ["a", "b", "c"]) == [60.0, 40.0, 20.0] and worker.pid == first
    worker.close()
    assert worker.pid is None and not is_alive(first)
    assert worker(PICTURES[:1], ["a"]) == [20.0] and worker.pid != first


def test_an_error_leaves_it_running_and_a_mistake_is_the_users(worker):
    worker(PICTURES[:1], ["a"])
    first = worker.pid
    with pytest.raises(RuntimeError, match="ValueError: nothing to see"):
        worker(PICTURES[:1], ["raise"])
    with pytest.raises(UserError, match="the prompt is a mistake; write another"):
        worker(PICTURES[:1], ["mistake"])
    assert worker(PICTURES[:2], ["a", "b"]) == [20.0, 40.0] and worker.pid == first


def test_one_that_dies_is_started_again(worker):
    worker(PICTURES[:1], ["a"])
    first = worker.pid
    with pytest.raises(JudgeLost, match=r"ended by itself \(code 3"):
        worker(PICTURES[:1], ["die"])
    assert worker.pid is None
    assert worker(PICTURES[:1], ["a"]) == [20.0]
    second = worker.pid
    os.kill(second, signal.SIGKILL)
    with pytest.raises(JudgeLost, match="code -9; out of memory"):
        worker(PICTURES[:1], ["a"])
    assert worker(PICTURES[:1], ["a"]) == [20.0] and len({first, second, worker.pid}) == 3


def test_one_that_takes_too_long_is_ended(worker):
    worker(PICTURES[:1], ["a"])
    first, worker.timeout = worker.pid, 0.3
    with pytest.raises(JudgeLost, match=r"gave no answer within 0\.3 s and was ended"):
        worker(PICTURES[:1], ["sleep"])
    assert until_gone(first, 0.1) and worker.pid is None
    worker.timeout = 20.0
    assert worker(PICTURES[:1], ["a"]) == [20.0]  # not the answer that was given up


def test_an_interrupt_ends_it_because_its_answer_would_belong_to_another_question(worker, monkeypatch):
    worker(PICTURES[:1], ["a"])
    first = worker.pid

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker._running.ours, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker(PICTURES[:1], ["a"])
    assert until_gone(first)
    assert worker(PICTURES[1:2], ["a"]) == [40.0]


def test_an_interrupt_in_a_question_ends_it_because_half_of_it_was_sent(worker, monkeypatch):
    worker(PICTURES[:1], ["a"])
    first, line = worker.pid, worker._running.ours

    def half(buffer, *_):
        os.write(line.fileno(), bytes(buffer)[: len(buffer) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(line, "_send", half)
    with pytest.raises(KeyboardInterrupt):
        worker(PICTURES[:1], ["a"])
    assert worker.pid is None and until_gone(first)
    assert worker(PICTURES[1:2], ["a"]) == [40.0]


def test_an_interrupt_while_it_starts_leaves_no_process_behind(worker, monkeypatch):
    started, Popen = [], subprocess.Popen

    def noted(*args, **kwargs):
        started.append(Popen(*args, **kwargs))
        return started[-1]

    def interrupted(line, message):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("unifl.feedback.scorers.worker.subprocess.Popen", noted)
        patched.setattr("unifl.feedback.scorers.worker.Connection.send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker(PICTURES[:1], ["a"])
    assert worker.pid is None and started[0].returncode is not None  # ended, and waited for
    assert worker(PICTURES[:1], ["a"]) == [20.0]


def test_it_can_be_started_before_it_is_asked(worker):
    worker.start()
    first = worker.pid
    worker.start()
    assert first is not None and worker(PICTURES[:1], ["a"]) == [20.0] and worker.pid == first


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("user", UserError, "there are no weights; give some"),
        ("raise", JudgeLost, "cannot be built: RuntimeError: out of luck"),
        ("die", JudgeLost, r"ended by itself \(code 4"),
        ("slow", JudgeLost, "was not ready within 1 s"),
    ],
)
def test_one_that_cannot_be_built(how, error, message):
    worker = WorkerProcess("process_judges:broken", {"how": how}, patience=1.0 if how == "slow" else 20.0)
    with pytest.raises(error, match=message):
        worker(PICTURES[:1], ["a"])
    assert worker.pid is None


def test_as_a_feedback_it_fails_with_one_clear_message(worker):
    judge = BlackBoxFeedback(worker, name="mean", takes="numpy", timeout=None, retries=1, backoff=0)
    images = torch.full((2, 3, 4, 4), 20 / 255)
    torch.testing.assert_close(judge(images, ["a", "b"]), torch.tensor([40.0, 40.0]))
    with pytest.raises(FeedbackFailed, match=r"'mean' gave no answer after 2 attempts .*ended by itself"):
        judge(images, ["a", "die"])
    with pytest.raises(FeedbackFailed, match=r"returned shape \(1,\) for 2 pictures"):
        judge(images, ["few", "b"])
    with pytest.raises(FeedbackFailed, match="returned nan"):
        judge(images, ["a", "nan"])
    torch.testing.assert_close(judge(images, ["a", "b"]), torch.tensor([40.0, 40.0]))


def test_calls_from_many_threads_get_their_own_answers(worker):
    found = {}

    def ask(number):
        picture = np.full((2, 2, 3), number, np.uint8)
        found[number] = [worker([picture], ["a"])[0] for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [2.0 * number] * 5 for number in range(8)}


def test_it_ends_when_nobody_holds_it():
    worker = WorkerProcess("process_judges:pid", {})
    (pid,) = worker(PICTURES[:1], ["a"])
    assert int(pid) == worker.pid
    del worker
    gc.collect()
    assert until_gone(int(pid))


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_it_ends_with_its_owner(end):
    code = f"""
        import sys, time
        sys.path.insert(0, {HERE!r})
        import numpy as np
        from unifl.feedback.scorers.worker import WorkerProcess
        worker = WorkerProcess("process_judges:pid", {{}})
        print(int(worker([np.zeros((2, 2, 3), np.uint8)], ["a"])[0]), flush=True)
        {"time.sleep(60)" if end == "kill" else ""}
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())  # and nothing that the judge printed
    if end == "kill":
        assert is_alive(pid)
        owner.kill()
    owner.wait(20)
    assert until_gone(pid)
    owner.stdout.close()
