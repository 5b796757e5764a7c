"""For tests of the reward service: scorers that give every mixing-up away, servers in threads and in processes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from unifl.feedback import as_feedback


def hashed(images, prompts):
    """A number in [0, 1) from every bit of each picture and its prompt; exact in float32."""
    return torch.tensor([_number(image, prompt) for image, prompt in zip(images, prompts, strict=True)])


def slow_hashed(images, prompts):
    """The same, after 20 ms for each picture in which other threads may run; SECONDS changes that."""
    time.sleep(float(os.environ.get("SECONDS", "0.02")) * len(images))
    return hashed(images, prompts)


def faulty(images, prompts):
    """Wrong where the first prompt of a batch says so; right otherwise."""
    if "crash" in prompts:
        raise RuntimeError("the scorer fell over")
    found = hashed(images, prompts)
    if "nan" in prompts:
        found[prompts.index("nan")] = float("nan")
    return found[:-1] if "count" in prompts else found


def declared(function, **kwargs):
    """As the service gets it from a recipe."""
    return as_feedback(function, differentiable=False, **kwargs)


class Gate:
    """A scorer that waits until it is let go, and remembers the batches that it saw."""

    def __init__(self):
        self.open, self.batches = threading.Event(), []

    def __call__(self, images, prompts):
        self.batches.append(list(prompts))
        assert self.open.wait(30)
        return hashed(images, prompts)

    def feedback(self):
        return declared(self, name="gate")


def _number(image, prompt):
    content = image.float().cpu().contiguous().numpy().tobytes() + prompt.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:3], "big") / 2**24


@contextmanager
def serving(scorer, *, port=0, token=None, **settings):
    """A server in a thread; gives it, with its address in `url`."""
    from unifl.web.rewards import RewardServer, ServiceSettings, open_socket

    with open_socket("127.0.0.1", port, token=token) as listening:
        server = RewardServer(scorer, "reward_service:hashed", ServiceSettings(**settings), token=token)
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until_true(lambda: server.started)
            yield server
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def start_process(scorer, *options, environment=None):
    """`unifl serve-reward` as a process of its own; gives it and its address once it serves."""
    command = [sys.executable, "-m", "unifl.cli", "serve-reward", scorer, "--device", "cpu", *options]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = process.stdout.readline()
    found = re.search(r"at (http://\S+), fingerprint [0-9a-f]{32};", said)
    if not found:
        process.kill()
        raise AssertionError(said + process.communicate()[0])
    return process, found[1]


def until_true(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def rounded(*shape, seed=0):
    """Pictures in eight bits, as files have them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).float() / 255


def exact(*shape, seed=0):
    """Pictures of a decoder: any float."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
