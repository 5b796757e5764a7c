"""Two gloo processes against one."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from training_toy import Toy, toy_config

from unifl.training.config import OptimizerConfig
from unifl.training.distributed import _buckets, any_process, average_gradients, from_all
from unifl.training.logging import read_lines
from unifl.training.loop import train

SCRIPT = Path(__file__).with_name("training_toy.py")
SGD = {"kind": "sgd"}
CHANGES = {
    "max_train_steps": 5,
    "optimizers": {"student": SGD, "discriminator": SGD},
    "grad_norm_steps": 1,
    "checkpointing_steps": 3,
}


def _free_port() -> int:
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


def _train(folder: Path, **changes):
    optimizers = {name: OptimizerConfig(**SGD) for name in ("student", "discriminator")}
    toy = Toy(dtype=torch.float64)
    config = toy_config(**(changes | {"optimizers": optimizers}))
    return toy, [result.numbers() for result in train(toy, config, folder)]


def _worker(rank: int, port: int, folder: Path) -> None:
    """One of two processes, forked from the tests, which may have used accelerate alone before."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_PORT": f"{port}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    changes = CHANGES | {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    toy, results = _train(folder / "run", **changes)
    torch.save({"weights": toy.generator.roles.state("student"), "results": results}, folder / f"dump-{rank}")


def test_two_processes_equal_one(tmp_path):
    port = _free_port()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_worker, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
        assert worker.exitcode == 0
    first, second = torch.load(tmp_path / "dump-0"), torch.load(tmp_path / "dump-1")
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])

    toy, expected = _train(tmp_path / "alone", **CHANGES, train_batch_size=8)
    for name, weights in toy.generator.roles.state("student").items():
        torch.testing.assert_close(first["weights"][name], weights, rtol=1e-5, atol=1e-9)
    # norms of the averaged gradients, of each term and of both optimisers, are among the numbers
    assert "grad_norm/discriminator/tell" in expected[0] and "grad_norm/student/fool" in expected[0]
    for here, there in zip(first["results"], expected, strict=True):
        assert here == pytest.approx(there, rel=1e-5)
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-3", "checkpoint-5"]

    optimizers = {name: OptimizerConfig(**SGD) for name in ("student", "discriminator")}
    config = toy_config(**(CHANGES | {"optimizers": optimizers, "max_train_steps": 6}))
    with pytest.warns(UserWarning, match=r"other conditions \(processes 2 -> 1\)"):
        train(Toy(dtype=torch.float64), config, tmp_path / "run", resume_from_checkpoint="latest")


def _gradient_worker(rank: int, port: int, folder: Path) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    with_gradient, only_first, without = (torch.nn.Parameter(torch.ones(3).double()) for _ in range(3))
    with_gradient.grad = torch.full((3,), 1.0 + 2 * rank).double()
    if rank == 0:
        only_first.grad = torch.full((3,), 8.0).double()
    average_gradients([with_gradient, only_first, without])
    torch.save([with_gradient.grad, only_first.grad, without.grad], folder / f"{rank}")


def test_a_gradient_that_only_one_process_has_counts_as_zero_on_the_other(tmp_path):
    port = _free_port()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_gradient_worker, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}")
        assert found[0].tolist() == [2, 2, 2] and found[1].tolist() == [4, 4, 4] and found[2] is None


@pytest.mark.slow
def test_accelerate_launch_equals_one_process_and_resumes(tmp_path):
    changes = CHANGES | {"train_batch_size": 4}
    for steps in (3, 5):
        # accelerate starts a single process for `--cpu`; `--multi_gpu` starts both, which find no GPU
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", str(_free_port()), str(SCRIPT), str(tmp_path / "run")]
        command += ["--changes", json.dumps(changes | {"max_train_steps": steps, "lr_scheduler": "constant"})]
        command += ["--dtype", "float64"]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert result.returncode == 0, result.stderr
    _, expected = _train(tmp_path / "alone", **CHANGES, train_batch_size=8, lr_scheduler="constant")
    found = read_lines(tmp_path / "run" / "metrics.jsonl")
    for step, (here, there) in enumerate(zip(found, expected, strict=True), start=1):
        assert here == pytest.approx({"step": step} | there, rel=1e-5)


def test_alone_nothing_is_changed():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    average_gradients([parameter, torch.nn.Parameter(torch.ones(1))])
    assert parameter.grad.tolist() == [1, 2, 3]
    assert from_all({"a": 1}) == [{"a": 1}] and any_process(True) and not any_process(False)


def test_buckets_hold_each_tensor_once_by_type(monkeypatch):
    monkeypatch.setattr("unifl.training.distributed.BUCKET_BYTES", 100)
    tensors = [
        torch.zeros(n, dtype=d) for n, d in ((10, torch.float32), (5, torch.float64), (20, torch.float32))
    ]
    tensors += [torch.zeros(3), torch.zeros(100)]
    buckets = list(_buckets(tensors))
    assert sorted(id(t) for bucket in buckets for t in bucket) == sorted(map(id, tensors))
    assert all(len({t.dtype for t in bucket}) == 1 for bucket in buckets)
    assert [[len(t) for t in bucket] for bucket in buckets] == [[10], [20, 3], [100], [5]]


def test_processes_leave_their_group_when_the_program_ends(tmp_path):
    """In a process of its own: what happens at the end of a program cannot be watched from within it."""
    program = f"""
import atexit, torch.distributed as dist
from unifl.training import distributed
# handlers run last come, first served: this one looks after all others have run
atexit.register(lambda: print("open" if dist.is_initialized() else "closed"))
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
distributed.num_processes = lambda: 2
distributed.close_at_exit()
distributed.close_at_exit()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["closed"]
