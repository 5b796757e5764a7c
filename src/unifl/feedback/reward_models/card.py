"""The card of a trained reward model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unifl.disk import write_atomically

_SEES = {
    "small": "pictures of any size; the first 32 words of the prompt, hashed",
    "clip": "the square that the image processor in base/ cuts; 77 tokens of the prompt",
    "siglip": "the square that the image processor in base/ makes; 64 tokens of the prompt",
    "blip": "the square that the image processor in base/ makes; 35 tokens of the prompt",
    "latent": "scaled latents of one autoencoder; the first 32 words of the prompt, hashed",
}


def write_card(folder: Path, told: Mapping[str, Any]) -> None:
    """Write README.md.

    Args:
        folder: Of the model.
        told: What `reward.json` says.
    """
    config, found = told["config"], told["found"]
    kind = config["backbone"]
    lines = [
        "---",
        "library_name: unifl",
        "tags: [reward-model, preference]",
        "---",
        "",
        f"# {told['name']}",
        "",
        f"A reward model: {kind}{' of ' + str(config['base']) if config['base'] else ''}, head {config['head']}"
        f"{', with a time for noisy latents' if config['timed'] else ''}.",
        "",
        f"- sees: {_SEES[kind]}",
        "- scale: log-odds; sigmoid(r1 - r2) is the probability that people prefer the first picture of a prompt. "
        "The zero means nothing, and rewards of different prompts cannot be compared",
        *(f"- {name}: {text}" for name, text in _facts(found)),
        "- biases: those of the people and pictures that it learnt from; a model that is trained against it will find "
        "what it overlooks, so judge the result by something else",
        "- licence: that of the base model and of the data, where they have one",
        "",
        "Open it with",
        "",
        "```python",
        "from unifl.feedback.reward_models import load_reward_model",
        'reward = load_reward_model("path/to/this/folder")',
        "```",
        "",
        "or by its path in a recipe (`rewards: {mine: path/to/this/folder}`)"
        + (
            ", in `unifl score` and in `unifl reward eval`."
            if kind != "latent" or "autoencoder" in found
            else "."
        ),
        "",
    ]
    write_atomically(folder / "README.md", "\n".join(lines).encode())


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if "data" in found:
        facts.append(
            ("trained on", f"{found['pairs']} pairs of {found['prompts']} prompts from {found['data']}")
        )
    if "autoencoder" in found:
        facts.append(("latents of", found["autoencoder"]["model"]))
    if "flipped" in found:
        facts.append(("voting", f"{found['voters']} models; {found['flipped']} labels were against the vote"))
    if "accuracy" in found:
        right = found["accuracy"]
        facts.append(
            (
                f"pairs of {right['n']} held-out prompts",
                f"{right['value']:.1%} [{right['low']:.1%}, {right['high']:.1%}] ordered as labelled",
            )
        )
    return facts
