"""Somebody who sits before the arena's page: looks at both pictures, and presses a key.

Whoever it is sees what the page shows, through the browser, and nothing else; which model drew what is not on the page.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

READY = "#judge[data-state=ready]"
_PIXELS = """picture => {
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    return [canvas.height, canvas.width, ...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""
KEYS = {"left": "ArrowLeft", "same": "ArrowDown", "right": "ArrowRight"}

Choose = Callable[[torch.Tensor, str], str]
"""From two pictures, `(2, 3, h, w)` in [0, 1], the left one first, and a prompt to left, same or right."""


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def judge(page: Any, link: str, choose: Choose, *, progress: Callable[[int], None] | None = None) -> int:
    """Open somebody's link and press keys until nothing is left; returns how many pairs were judged."""
    page.goto(link)
    judged = 0
    while True:
        page.wait_for_selector(f"{READY}, #judge[data-state=done]", state="attached")
        if page.get_attribute("#judge", "data-state") == "done":
            return judged
        number = page.get_attribute("#judge", "data-shown")
        pictures = torch.stack([_seen(page, side) for side in ("left", "right")])
        page.keyboard.press(KEYS[choose(pictures, page.inner_text("#prompt"))])
        page.wait_for_selector(
            f"{READY}:not([data-shown='{number}']), #judge[data-state=done]", state="attached"
        )
        judged += 1
        if progress is not None:
            progress(judged)


def _seen(page: Any, side: str) -> torch.Tensor:
    height, width, *pixels = page.eval_on_selector(f"#{side} img", _PIXELS)
    return torch.tensor(pixels, dtype=torch.float32).reshape(height, width, 4)[..., :3].permute(2, 0, 1) / 255
