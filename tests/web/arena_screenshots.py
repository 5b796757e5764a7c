"""The pictures of docs/arena.md: the demo's pictures judged for a while, in a real browser.

python tests/web/arena_screenshots.py    writes docs/images/arena-desktop.png, arena-phone.png, arena-admin.png
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from unifl.assembly.arena import draw_demo
from unifl.web.arena import Arena, ArenaSettings
from unifl.web.arena.app import make_app
from unifl.web.arena.make import make_arena, named_folders

IMAGES = Path(__file__).parents[2] / "docs" / "images"
READY = "#judge[data-state=ready]"
LIKED = {"20 steps": 0.8, "4 steps": 0.2, "20 steps, unguided": -0.6}


def judge(arena: Arena, name: str, number: int, draw: random.Random) -> str:
    """Somebody who likes some ways of sampling better than others; their token."""
    token = arena.add_annotator(name)
    person = arena.annotator(token)
    models = {
        str(arena.folder / file): model for file, model in arena.rows("SELECT file, model FROM pictures")
    }
    for _ in range(number):
        shown = arena.next(person)
        left, right = (LIKED[models[str(arena.picture(n))]] for n in (shown.left, shown.right))
        lead = left - right + draw.gauss(0, 0.6)
        said = "same" if abs(lead) < 0.15 else "left" if lead > 0 else "right"
        took = int(1000 * draw.uniform(0.8, 3.5))
        arena.vote(person, shown.id, {"overall": said}, milliseconds=took)
    return token


def small(path: Path) -> None:
    """A palette keeps pages sharp, and files small."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder, draw = Path(temporary) / "arena", random.Random(5)
        folders = draw_demo(folder / "drawn")
        make_arena(
            folder,
            named_folders([f"{name}={path}" for name, path in folders.items()]),
            ArenaSettings(overlap=2),
        )
        arena = Arena(folder)
        token = judge(arena, "Ann", 21, draw)
        judge(arena, "Bob", 26, draw)
        admin = arena.new_admin()
        server = uvicorn.Server(uvicorn.Config(make_app(arena), port=0, log_level="warning"))
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        found = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for name, path, ready, options in (
            ("desktop", f"a/{token}", READY, {"viewport": {"width": 1280, "height": 800}}),
            (
                "phone",
                f"a/{token}",
                READY,
                {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "color_scheme": "dark"},
            ),
            ("admin", f"admin/{admin}", "#export", {"viewport": {"width": 1060, "height": 800}}),
        ):
            page = browser.new_context(**options).new_page()
            page.goto(f"{url}/{path}")
            page.wait_for_selector(ready)
            target = IMAGES / f"arena-{name}.png"
            page.screenshot(path=target, full_page=name == "admin")
            small(target)
            print(target, target.stat().st_size)
        browser.close()
        server.should_exit = True


if __name__ == "__main__":
    main()
