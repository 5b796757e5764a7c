"""Arenas with pictures whose colour tells the model, and servers around them."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for arena_pictures and arena_attacks

from arena_pictures import draw

from unifl.web.arena import Arena, ArenaSettings, PairPlan, plan_pairs
from unifl.web.arena.gather import read_folder, take_in


@pytest.fixture
def make_arena(tmp_path):
    """Build an arena in a folder: `make_arena(prompts=["a cat"], models=("base", "good"), overlap=2)`."""
    made = []

    def build(name="arena", *, prompts=4, models=("base", "good"), gold=0, size=(96, 96), **settings):
        texts = [f"prompt {n}" for n in range(prompts)] if isinstance(prompts, int) else prompts
        found = []
        for model in models:
            found += read_folder(draw(tmp_path / f"{name} pictures" / model, model, texts, size=size))
        known = [PairPlan(first=n, second=len(texts) + n, gold=0.0) for n in range(gold)]
        pairs = plan_pairs(found)[: None if not gold else -gold]
        folder = tmp_path / name
        made.append(Arena.create(folder, take_in(found, folder), [*pairs, *known], ArenaSettings(**settings)))
        return made[-1]

    yield build
    for arena in made:
        with contextlib.suppress(Exception):
            arena.close()


@pytest.fixture
def serving():
    """Serve an arena from a thread: `serving(arena)` gives the address."""
    import uvicorn

    from unifl.web.arena.app import make_app

    servers = []

    def start(arena, limits=None):
        config = uvicorn.Config(
            make_app(arena, limits), port=0, log_level="warning", access_log=False, proxy_headers=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)
