"""What a test does in the arena's page, and what was kept of it."""

from __future__ import annotations

import io

from arena_pictures import COLOURS
from PIL import Image

from unifl.web.arena.results import read_votes

LEFT, SAME, RIGHT = "ArrowLeft", "ArrowDown", "ArrowRight"
READY = "#judge[data-state=ready]"


def seen(page):
    """The models on the left and on the right, by the colours that are shown."""
    page.wait_for_selector(READY)
    found = []
    for side in ("left", "right"):
        source = page.get_attribute(f"#{side} img", "src")
        content = page.request.get(page.url.split("/a/")[0] + source).body()
        colour = Image.open(io.BytesIO(content)).getpixel((1, 1))
        found.append(next(model for model, known in COLOURS.items() if known == colour))
    return tuple(found)


def shown(page):
    page.wait_for_selector(READY)
    return page.get_attribute("#judge", "data-shown")


def press(page, key):
    """Press a key, and wait until the pair is another one, or all is done."""
    before = shown(page)
    page.keyboard.press(key)
    page.wait_for_selector(f"{READY}:not([data-shown='{before}']), #judge[data-state=done]", state="attached")


def kept(arena):
    """Votes as (prompt, model that won or None)."""
    winner = {1.0: 0, 0.0: 1}
    return [
        (vote.prompt, vote.models[winner[value]] if value in winner else None)
        for vote in read_votes(arena)
        for value in vote.answers.values()
    ]
