"""The reward service when clients go before they have an answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from reward_service import Gate, declared, exact, hashed, serving, until_true
from unifl.errors import FeedbackFailed
from unifl.feedback.remote import RemoteReward


def test_nothing_is_scored_for_a_client_that_has_gone():
    gate = Gate()
    with serving(gate.feedback(), batch_size=1) as server:
        with ThreadPoolExecutor(1) as pool:
            stays = pool.submit(RemoteReward(server.url), exact(1, 3, 4, 4), ["stays"])
            until_true(lambda: gate.batches)
            with pytest.raises(FeedbackFailed, match="no answer in time"):
                RemoteReward(server.url, timeout=0.2, patience=0.2)(exact(1, 3, 4, 4), ["goes"])
            until_true(lambda: server.batcher.inside == 1)
            gate.open.set()
            assert stays.result(30).shape == (1,)
        RemoteReward(server.url)(exact(1, 3, 4, 4), ["later"])
    assert gate.batches == [["stays"], ["later"]]


def leave(url, images, prompts):
    """Ask, and hang up."""
    with pytest.raises(FeedbackFailed, match="no answer in time"):
        RemoteReward(url, timeout=0.2, patience=0.2)(images, prompts)


def test_what_a_client_leaves_behind_takes_no_room_in_the_queue_or_a_batch():
    gate = Gate()
    with serving(gate.feedback(), batch_size=2, queue=3) as server, ThreadPoolExecutor(4) as pool:
        far, images = RemoteReward(server.url), exact(1, 3, 4, 4)
        answers = [pool.submit(far, images, ["first"])]
        until_true(lambda: gate.batches)
        answers.append(pool.submit(far, images, ["second"]))
        until_true(lambda: len(server.batcher._waiting) == 1)
        for _ in range(2):
            leave(server.url, images, ["goes"])
            until_true(lambda: server.batcher.inside == 2)
            assert len(server.batcher._waiting) == 1
        answers.append(pool.submit(far, images, ["third"]))
        until_true(lambda: len(server.batcher._waiting) == 2)
        gate.open.set()
        assert all(answer.result(30).shape == (1,) for answer in answers)
    assert gate.batches == [["first"], ["second", "third"]]


def test_a_long_question_is_not_scored_to_its_end_for_nobody():
    counted = []

    def slow(images, prompts):
        counted.append(len(images))
        time.sleep(0.15)
        return hashed(images, prompts)

    with serving(declared(slow), batch_size=2) as server:
        leave(server.url, exact(20, 3, 4, 4), ["x"] * 20)
        until_true(lambda: server.batcher.inside == 0)
        RemoteReward(server.url)(exact(1, 3, 4, 4), ["later"])
    assert sum(counted) < 12 and counted[-1] == 1  # of 21
