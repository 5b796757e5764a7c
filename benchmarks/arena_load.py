"""Many annotators at once on a real server: latencies, and whether every acknowledged vote is there once.

    python benchmarks/arena_load.py            # writes benchmarks/results/arena.json, a bit more than a minute

Annotators, their pictures and the server share the machine. Each one loads the pictures of a pair, votes one to two
seconds after the vote before, and keeps what the server acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from unifl.web.arena import Arena, ArenaSettings, Candidate, plan_pairs

RESULT = Path(__file__).parent / "results" / "arena.json"


@dataclass
class Seen:
    """What annotators saw: showings whose votes were acknowledged, and seconds of each request."""

    acknowledged: list[int] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)
    pictures: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def make(folder: Path, pairs: int, side: int = 512) -> None:
    """An arena of noisy pictures of half a megabyte, as many pairs as are needed."""
    (folder / "pictures").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(40):
        pixels = draw.integers(0, 256, (side // 2, side // 2, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    candidates = [
        Candidate(prompt=f"prompt {n}", file=f"pictures/{(2 * n + m) % 40}.png", model=f"model {m}")
        for n in range(pairs)
        for m in range(2)
    ]
    Arena.create(folder, candidates, plan_pairs(candidates), ArenaSettings()).close()


def start(folder: Path, people: int) -> tuple[subprocess.Popen[str], list[str]]:
    """The server in a process of its own, and the links that it prints."""
    command = [sys.executable, "-m", "unifl.cli", "arena", "serve", str(folder), "--port", "0"]
    for number in range(people):
        command += ["--annotator", f"person {number}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    links: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        links += re.findall(r"^person \d+: (\S+)$", line.strip())
        if line.startswith("The arena is at"):
            return process, links
    raise SystemExit("the server did not start")


async def annotate(link: str, until: float, seen: Seen, draw: random.Random) -> None:
    """One annotator, until the time is over or the server is gone."""
    async with httpx.AsyncClient(timeout=30, headers={"hx-request": "true"}) as client:
        await asyncio.sleep(draw.uniform(0, 2))
        page = (await client.get(link)).text
        while time.monotonic() < until:
            began = time.monotonic()
            shown = re.search(r'data-shown="(\d+)"', page)
            if shown is None:
                seen.refused.append("nothing left to judge")
                return
            for side in ("left", "right"):
                asked = time.monotonic()
                picture = await client.get(f"{link}/picture/{shown[1]}/{side}")
                seen.pictures.append(time.monotonic() - asked)
                if picture.status_code != 200:
                    seen.refused.append(f"picture: {picture.status_code}")
            await asyncio.sleep(max(0.0, began + draw.uniform(1, 2) - time.monotonic()))
            vote = {"shown": shown[1], "answer-0": draw.choice(["left", "same", "right"])}
            asked = time.monotonic()
            answer = await client.post(f"{link}/vote", data=vote)
            seen.votes.append(time.monotonic() - asked)
            if answer.status_code != 200:
                seen.refused.append(f"vote: {answer.status_code}")
                continue
            seen.acknowledged.append(int(shown[1]))
            page = answer.text


async def run(
    links: list[str], seconds: float, seen: Seen, kill: subprocess.Popen[str] | None = None
) -> None:
    """All annotators at once; where a process is given, it is killed when the time is over, and they go on."""
    until = time.monotonic() + seconds + (5 if kill is not None else 0)
    tasks = [
        asyncio.create_task(annotate(link, until, seen, random.Random(number)))
        for number, link in enumerate(links)
    ]
    if kill is not None:
        await asyncio.sleep(seconds)
        kill.send_signal(signal.SIGKILL)
    await asyncio.gather(*tasks, return_exceptions=kill is not None)


def kept(folder: Path) -> list[int]:
    """Showings that have a vote, as a new process finds them."""
    arena = Arena(folder)
    found = [row[0] for row in arena.rows("SELECT shown FROM votes WHERE withdrawn = 0 ORDER BY id")]
    arena.close()
    return found


def measure(people: int, seconds: float, *, kill: bool = False) -> tuple[Seen, list[int]]:
    """Run annotators against a server; what they saw, and what was kept."""
    with tempfile.TemporaryDirectory() as folder:
        place, seen = Path(folder) / "arena", Seen()
        make(place, pairs=int(people * seconds) + 10 * people)
        process, links = start(place, people)
        try:
            asyncio.run(run(links, seconds, seen, process if kill else None))
        finally:
            process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
            process.wait(30)
        return seen, kept(place)


def summary(seen: Seen, stored: list[int], people: int, seconds: float) -> dict[str, object]:
    """Figures of a run."""
    return {
        "annotators": people,
        "seconds": seconds,
        "votes_acknowledged": len(seen.acknowledged),
        "votes_lost": len(set(seen.acknowledged) - set(stored)),
        "votes_doubled": len(stored) - len(set(stored)),
        "requests_refused": len(seen.refused),
        "vote_ms": {f"p{p}": round(1000 * float(np.percentile(seen.votes, p)), 1) for p in (50, 95, 99)},
        "picture_ms": {
            f"p{p}": round(1000 * float(np.percentile(seen.pictures, p)), 1) for p in (50, 95, 99)
        },
        "load_15_minutes": round(os.getloadavg()[2], 2),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    found = {}
    for name, kill in (("whole", False), ("killed", True)):
        seconds = arguments.seconds if not kill else min(15.0, arguments.seconds)
        seen, stored = measure(arguments.people, seconds, kill=kill)
        found[name] = summary(seen, stored, arguments.people, seconds)
        print(name, json.dumps(found[name], indent=1))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
