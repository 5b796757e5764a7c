"""The room on the disk that a run asks for before it starts, and the room that it then takes."""

from __future__ import annotations

import pytest
from training_toy import Toy, save_toy, toy_config

from unifl.training import run
from unifl.training.loop import train


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stop_after", [None, 5])
@pytest.mark.parametrize("limit", [1, 2, None])
def test_the_room_asked_for_is_the_room_taken(tmp_path, monkeypatch, limit, stop_after):
    asked, taken = [], []
    check, prune = run.require_free_space, run.prune

    def listen(folder, num_bytes):
        asked.append(num_bytes)
        check(folder, num_bytes)

    def weigh(folder, **how):  # when a checkpoint has been written and none has been removed for it
        taken.append(_size(folder))
        prune(folder, **how)

    monkeypatch.setattr(run, "require_free_space", listen)
    monkeypatch.setattr(run, "prune", weigh)
    config = toy_config(checkpointing_steps=2, checkpoints_total_limit=limit)
    toy = Toy(width=4000)
    model = sum(parameter.nbytes for parameter in toy.parameters["student"])

    def start(toy):
        saver = save_toy(toy)
        return train(
            toy, config, tmp_path, save_model=saver, model_bytes=model, resume_from_checkpoint="latest"
        )

    if stop_after is not None:
        steps = start(Toy(width=4000))
        while next(steps).step < stop_after:
            pass
        steps.close()
    before = _size(tmp_path)
    asked.clear(), taken.clear()
    list(start(toy))
    most = max([*taken, _size(tmp_path)]) - before
    slack = 0.02 * most  # manifests, lines of numbers
    assert most <= asked[0] + slack
    assert asked[0] <= most + model + slack
