"""Ctrl-C, SIGTERM and SIGKILL, at every moment that matters."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from functools import partial

import pytest
from training_toy import Toy, run_folder_bytes, save_toy, toy_config

from unifl.training import checkpoint, run
from unifl.training.loop import train

CONFIG = {"checkpointing_steps": 2, "checkpoints_total_limit": 2, "preview_steps": 3}
# A child starts in no time, from a process that has imported what takes long and has no thread whose locks a fork could
# leave held; the test runner may have some.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([train.__module__])


def _train(folder, *, at=None, cpu_seconds=0.0):
    """A whole run; `at` is called with the place reached, to die there, and so does who uses up `cpu_seconds`."""
    if at is not None:
        for module, name in ((checkpoint, "_flush_tree"), (run, "prune")):
            original = getattr(module, name)
            setattr(module, name, lambda *args, o=original, n=name, **kw: (at(n), o(*args, **kw)))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    toy = Toy()
    config = toy_config(**CONFIG)
    list(train(toy, config, folder, save_model=save_toy(toy), resume_from_checkpoint="latest"))


def _start(folder, **arguments):
    child = _SERVER.Process(target=_train, args=(folder,), kwargs=arguments)
    child.start()
    return child


def _die_at(place, count, seen, name):
    """Killed when `place` is reached for the `count`-th time."""
    seen.append(name)
    if seen.count(place) == count:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    _train(folder)
    return run_folder_bytes(folder)


def _kill_until_done(folder, seed, *, longest):
    """Kill runs after random amounts of CPU time until one gets through; returns how many were killed.

    The timer's signal has no handler and ends the process between two instructions, as SIGKILL does; unlike a
    clock it falls into the same places on a busy machine.
    """
    rng, killed = random.Random(seed), 0
    while True:
        child = _start(folder, cpu_seconds=rng.uniform(0.1, 1.0) * longest)
        child.join()
        if child.exitcode == 0:
            return killed
        assert child.exitcode == -signal.SIGPROF
        killed += 1
        longest *= 1.2


def _killed_on_its_way(place, seed):
    """The folder of a run that was killed at least once; on a fast machine it takes shorter times to hit one."""
    for number in itertools.count():
        folder = place / str(number)
        if _kill_until_done(folder, seed, longest=0.1 / 2**number):
            return folder


def test_killed_at_random_moments_a_run_ends_the_same(tmp_path, whole):
    assert run_folder_bytes(_killed_on_its_way(tmp_path, 0)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_at_many_random_moments_a_run_ends_the_same(tmp_path, whole, seed):
    assert run_folder_bytes(_killed_on_its_way(tmp_path, seed)) == whole


@pytest.mark.parametrize("place", ["_flush_tree", "prune"])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_killed_while_a_checkpoint_is_written(tmp_path, whole, place, count):
    child = _start(tmp_path, at=partial(_die_at, place, count, []))
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
        list(train(toy, toy_config(**CONFIG), tmp_path, save_model=save_toy(toy)))
    assert signal.getsignal(number) == before
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    _train(tmp_path)
    assert run_folder_bytes(tmp_path) == whole


def test_a_signal_while_the_model_is_looked_at_leaves_a_checkpoint_too(tmp_path, whole):
    looks = []

    def look(result):
        if result.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        looks.append(result.step)

    toy = Toy()
    with pytest.raises(KeyboardInterrupt):
        list(train(toy, toy_config(**CONFIG), tmp_path, save_model=save_toy(toy), after_step=look))
    assert looks == [1, 2, 3, 4, 5]
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
        list(train(Impatient(), toy_config(**CONFIG), tmp_path))
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_between_steps_a_signal_acts_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    steps = train(Toy(), toy_config(**CONFIG), tmp_path)
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    steps.close()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    toy = Toy()

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(train(toy, toy_config(), tmp_path, save_model=fail))
    assert not list(tmp_path.glob("checkpoint-*")) and not list(tmp_path.glob(".unfinished-*"))
