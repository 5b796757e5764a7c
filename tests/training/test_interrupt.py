"""Ctrl-C, SIGTERM and SIGKILL, at every moment that matters."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import pytest
from training_toy import Toy, ToyConfig, run_folder_bytes, save_toy, toy_config

from unifl.training import checkpoint, run
from unifl.training.loop import train

CONFIG = {"checkpointing_steps": 2, "checkpoints_total_limit": 2, "preview_steps": 3}


def _train(folder, *, pause=0.0, at=None, **changes):
    """A whole run in a process of its own; `at` is called with the place reached, to die there."""
    if at is not None:
        for module, name in ((checkpoint, "_flush_tree"), (run, "prune")):
            original = getattr(module, name)
            setattr(module, name, lambda *args, o=original, n=name, **kw: (at(n), o(*args, **kw)))
    toy = Toy(config=ToyConfig(pause=pause))
    config = toy_config(**(CONFIG | changes))
    # one text for all pauses: the settings are kept in the checkpoints
    steps = train(
        toy, config, folder, save_model=save_toy(toy), resume_from_checkpoint="latest", settings="toy: true\n"
    )
    for _ in steps:
        pass


def _start(folder, **arguments):
    # forked, so that a child starts in no time: nothing here has threads that a fork could break
    child = multiprocessing.get_context("fork").Process(target=_train, args=(folder,), kwargs=arguments)
    child.start()
    return child


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    _train(folder)
    return run_folder_bytes(folder)


def _kill_until_done(folder, seed, *, longest, pause):
    """Kill runs after random times until one gets through; returns how many were killed."""
    rng, killed = random.Random(seed), 0
    while True:
        child = _start(folder, pause=pause)
        child.join(rng.uniform(0.02, longest))
        if not child.is_alive():
            assert child.exitcode == 0
            return killed
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        killed += 1
        longest *= 1.2


def test_killed_at_random_moments_a_run_ends_the_same(tmp_path, whole):
    assert _kill_until_done(tmp_path, 0, longest=0.1, pause=0.005) >= 1
    assert run_folder_bytes(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_many_random_moments_a_run_ends_the_same(tmp_path, whole, seed):
    assert _kill_until_done(tmp_path, seed, longest=0.07, pause=0.003) >= 1
    assert run_folder_bytes(tmp_path) == whole


@pytest.mark.parametrize("place", ["_flush_tree", "prune"])
@pytest.mark.parametrize("count", [1, 3])
def test_killed_while_a_checkpoint_is_written(tmp_path, whole, place, count):
    seen = []

    def die(name):
        seen.append(name)
        if seen.count(place) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    child = _start(tmp_path, at=die)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    if place == "_flush_tree":
        assert list(tmp_path.glob(".unfinished-*"))
    _train(tmp_path)
    assert run_folder_bytes(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_step_waits_for_its_end_and_leaves_a_checkpoint(tmp_path, whole, number):
    class Interrupted(Toy):
        def step(self, update, batch):
            if batch.key.step == 4 and update == "student":
                os.kill(os.getpid(), number)
            return super().step(update, batch)

    toy = Interrupted()
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        list(train(toy, toy_config(**CONFIG), tmp_path, save_model=save_toy(toy), settings="toy: true\n"))
    assert signal.getsignal(number) == before
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    _train(tmp_path)
    assert run_folder_bytes(tmp_path) == whole


def test_a_second_signal_does_not_wait(tmp_path, whole):
    class Impatient(Toy):
        def step(self, update, batch):
            if batch.key.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("the second Ctrl-C came to nothing")
            return super().step(update, batch)

    with pytest.raises(KeyboardInterrupt):
        list(train(Impatient(), toy_config(**CONFIG), tmp_path, settings="toy: true\n"))
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_between_steps_a_signal_acts_at_once(tmp_path):
    steps = train(Toy(), toy_config(**CONFIG), tmp_path)
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    steps.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    toy = Toy()

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(train(toy, toy_config(), tmp_path, save_model=fail))
    assert not list(tmp_path.glob("checkpoint-*")) and not list(tmp_path.glob(".unfinished-*"))
