"""Arenas with pictures whose colour tells the model, servers around them, and browsers before these."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for arena_pictures and others

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
    """Serve an arena from a thread, as the command does: `serving(arena)` gives the address."""
    import uvicorn

    from unifl.web.arena.app import make_app
    from unifl.web.arena.serve import configured
    from unifl.web.listening import listen

    servers = []

    def start(arena, limits=None, *, proxy=None, **changed):
        config = configured(make_app(arena, limits), proxy=proxy)
        for name, value in changed.items():
            setattr(config, name, value)
        server, listener = uvicorn.Server(config), listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Open an address in a browser context of its own; whatever the console complains about fails the test."""
    contexts, complaints = [], []

    def open_(url, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(f"{error}"))
        page.goto(url)
        return page

    open_.complaints = complaints
    yield open_
    for context in contexts:
        context.close()
    assert not complaints
