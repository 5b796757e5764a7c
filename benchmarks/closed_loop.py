"""The whole loop: draw, let people judge in the arena's page, train a reward on that, align the model, compare.

    python benchmarks/closed_loop.py runs/closed_loop --out benchmarks/results/closed_loop.json

Every step is a command of `unifl`, as docs/closed-loop.md has them, but for the people: the annotator of the embedded
world sits before the real page in Chromium and presses keys, with an error of its own in every look. Nobody but it and
the judge of final figures, which is asked once, at the end, tells the loop what is good. Steps that are done are not
done again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from scripted_annotator import browser, judge

PROMPTS, SEED = 660, 1201
SETTINGS = {"few steps": ("8", "2.0"), "unguided": ("20", "1.0"), "guided": ("20", "5.0")}
"""Steps and guidance of the pictures that are compared: what people can tell apart teaches most."""
STEPS, NUM_PROMPTS, SEEDS = "46", "500", "2"
FIT = (
    "fit.batch_size=48",
    "fit.weight_decay=0.05",
    "fit.label_noise=0.1",
    "fit.evaluate_every=50",
)
"""Few labels, a quarter of them wrong: measured often, so that the fit ends where it is best on half of the held-out
prompts; the accuracy is that on the other half."""
LIMIT = 2000
"""Judgements at most. Some prompts come twice, so that there are more pairs than three times the prompts."""
TIE = 0.01
_LINK = re.compile(r"^(.+?): (http\S+/a/\S+)$", re.MULTILINE)


def unifl(*arguments: str, **options: object) -> None:
    command = [sys.executable, "-m", "unifl.cli", *arguments]
    print("$ unifl", " ".join(arguments), flush=True)
    subprocess.run(command, check=True, **options)


def draw(folder: Path, prompts: int) -> list[str]:
    """Pictures of the base in three settings, a folder each."""
    from unifl.world.scenes import sample_prompts

    texts = folder / "prompts.txt"
    if not texts.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        texts.write_text("".join(f"{text}\n" for text in sample_prompts(prompts, seed=SEED, held_out=False)))
    found = []
    for name, (steps, guidance) in SETTINGS.items():
        out = folder / "pictures" / name.replace(" ", "_")
        if not (out / "metadata.jsonl").is_file():
            unifl(
                *("generate", "world:pipeline", "--prompts", str(texts), "--steps", steps),
                *("--guidance", guidance, "--seed", str(SEED), "--batch-size", "60", "--out", str(out)),
            )
        found += ["--pictures", f"{name}={out}"]
    return found


def people(seed: int, noise: float | None):
    """The annotator's opinion, with somebody's error about each picture, every time anew."""
    from unifl.world.annotator import NOISE, overall
    from unifl.world.assets import load_judge

    network, rng = load_judge("annotator"), torch.Generator().manual_seed(seed)
    error = NOISE if noise is None else noise

    def choose(pictures: torch.Tensor, prompt: str) -> str:
        seen = overall(network(pictures, [prompt] * 2)) + error * torch.randn(2, generator=rng)
        lead = float(seen[0] - seen[1])
        return "same" if abs(lead) < TIE else "left" if lead > 0 else "right"

    return choose


def ask(folder: Path, pictures: list[str], prompts: int, noise: float | None) -> int:
    """Judgements from the page, as preference data; returns how many."""
    votes = folder / "arena" / "votes.jsonl"
    if votes.is_file():
        return len(votes.read_text().splitlines())
    if not (folder / "arena" / "arena.sqlite").is_file():
        unifl("arena", "make", str(folder / "arena"), *pictures, "--seed", str(SEED), "--limit", str(LIMIT))
    command = [sys.executable, "-m", "unifl.cli", "arena", "serve", str(folder / "arena"), "--port", "0"]
    command += ["--annotator", f"annotator {int(time.time())}"]
    print("$ unifl", " ".join(command[3:]), flush=True)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said = ""
        while not (link := _LINK.search(said)):
            line = server.stdout.readline()
            if not line:
                raise SystemExit(f"the arena did not start (status {server.wait()})")
            said += line
        with browser() as opened:
            began, total = time.perf_counter(), min(3 * prompts, LIMIT)

            def shown(done: int) -> None:
                if done % 100 == 0:
                    print(f"{done} of {total} judged, {time.perf_counter() - began:.0f} s", flush=True)

            judge(opened.new_page(), link[2], people(SEED, noise), progress=shown)
    finally:
        server.terminate()
        server.wait(20)
    unifl("arena", "export", str(folder / "arena"), str(votes))
    return len(votes.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--steps", default=STEPS)
    parser.add_argument("--fit-steps", default="400")
    parser.add_argument("--num-prompts", default=NUM_PROMPTS)
    parser.add_argument(
        "--noise", type=float, help="Error of people about a picture; that of the world by default."
    )
    parser.add_argument("--judge", default="world:judges/gold")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = given.folder
    judged = ask(folder, draw(folder, given.prompts), given.prompts, given.noise)
    if not (folder / "reward" / "evaluation.json").is_file():
        unifl(
            "reward",
            "train",
            str(folder / "arena" / "votes.jsonl"),
            "--out",
            str(folder / "reward"),
            f"fit.steps={given.fit_steps}",
            *FIT,
        )
    if not (folder / "aligned" / "model").is_dir():
        unifl(
            *("train", "refl", f"output_dir={folder / 'aligned'}", f"rewards.global={folder / 'reward'}"),
            f"training.max_train_steps={given.steps}",
        )
    unifl(
        *("compare", f"{folder / 'aligned'}@20", "world:pipeline@20", "--num-prompts", given.num_prompts),
        *("--seeds", SEEDS, "--judge", given.judge, "--out", str(folder / "comparison")),
    )
    (compared,) = json.loads((folder / "comparison" / "result.json").read_text())["comparisons"]
    accuracy = json.loads((folder / "reward" / "evaluation.json").read_text())["decided"]
    found = {"judgements": judged, "reward_accuracy": accuracy, "comparison": compared}
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
