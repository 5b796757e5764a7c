"""A judge that stops answering: the run ends with its last complete step on the disk."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from training_toy import Toy, run_folder_bytes, save_toy, toy_config

from unifl.errors import FeedbackFailed
from unifl.feedback import BlackBoxFeedback
from unifl.training import checkpoint
from unifl.training.loop import train

CONFIG = {"checkpointing_steps": 4, "checkpoints_total_limit": 2}


class Judged(Toy):
    """Asks a black box in the first update, or in the second, and from some step on it hangs up."""

    def __init__(self, *, fails_at=-1, update="student"):
        super().__init__()
        self.fails_at, self.asks_in = fails_at, update
        self.judge = BlackBoxFeedback(self._score, name="far", retries=1, backoff=0)
        self.now = 0

    def _score(self, images, prompts):
        if self.now == self.fails_at:
            raise ConnectionError("hung up")
        return [0.0] * len(prompts)

    def step(self, update, batch):
        if update == self.asks_in:
            self.now = batch.key.step + 1
            self.judge(torch.zeros(len(batch.key), 3, 4, 4), [""] * len(batch.key))
        return super().step(update, batch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    toy = Judged()
    list(train(toy, toy_config(**CONFIG), folder, save_model=save_toy(toy)))
    return run_folder_bytes(folder)


@pytest.mark.parametrize("step", [5, 7])
def test_the_last_complete_step_is_saved_and_the_run_goes_on_from_it(tmp_path, whole, step):
    toy = Judged(fails_at=step)
    with pytest.raises(
        FeedbackFailed, match=f"stopped at step {step}: the feedback 'far' gave no answer"
    ) as stopped:
        list(train(toy, toy_config(**CONFIG), tmp_path, save_model=save_toy(toy)))
    last = tmp_path / f"checkpoint-{step - 1}"
    assert checkpoint.latest_checkpoint(tmp_path) == last and str(last) in str(stopped.value)
    assert isinstance(stopped.value.__cause__.__cause__, ConnectionError)
    toy = Judged()
    results = train(
        toy, toy_config(**CONFIG), tmp_path, save_model=save_toy(toy), resume_from_checkpoint="latest"
    )
    assert next(results).step == step
    list(results)
    assert run_folder_bytes(tmp_path) == whole


def test_also_with_accumulated_micro_batches(tmp_path):
    class Second(Judged):
        def step(self, update, batch):
            if update == "student":
                self.fails_at = 3 if batch.key.indices[0] % 4 else -1  # in the second micro-batch of step 3
            return super().step(update, batch)

    config = toy_config(**CONFIG, train_batch_size=2, gradient_accumulation_steps=2)
    toy = Second()
    with pytest.raises(FeedbackFailed, match="stopped at step 3"):
        list(train(toy, config, tmp_path))
    kept = [parameter.detach().clone() for parameter in toy.parameters["student"]]
    fresh = Judged()
    steps = train(fresh, config, tmp_path / "fresh")
    next(steps), next(steps)
    steps.close()
    assert all(torch.equal(a, b) for a, b in zip(kept, fresh.parameters["student"], strict=True))
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_step_that_was_half_made_is_not_saved(tmp_path):
    with pytest.raises(FeedbackFailed, match=r"half made and is not saved, the last checkpoint is .*point-4"):
        list(train(Judged(fails_at=7, update="discriminator"), toy_config(**CONFIG), tmp_path))
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_before_the_first_step_is_complete_there_is_nothing_to_save(tmp_path):
    with pytest.raises(FeedbackFailed, match="stopped at step 1: .*no step had been completed"):
        list(train(Judged(fails_at=1), toy_config(**CONFIG), tmp_path))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_that_is_there_already_is_not_written_again(tmp_path):
    written = []
    toy = Judged(fails_at=5)
    with pytest.raises(FeedbackFailed, match="the last checkpoint is .*checkpoint-4"):
        list(train(toy, toy_config(**CONFIG), tmp_path, save_model=written.append))
    assert len(written) == 1


def _worker(rank: int, port: int, folder) -> None:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_PORT": f"{port}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        list(train(Judged(fails_at=3 if rank else -1), toy_config(**CONFIG), folder / "run"))
    except FeedbackFailed as error:
        (folder / f"error-{rank}").write_text(str(error))


def test_a_judge_that_one_process_cannot_reach_stops_both(tmp_path):
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        port = connection.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_worker, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    assert checkpoint.latest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    errors = [(tmp_path / f"error-{rank}").read_text() for rank in range(2)]
    assert "in another process" in errors[0] and "hung up" in errors[1]
    assert all("stopped at step 3" in error and "checkpoint-2" in error for error in errors)
