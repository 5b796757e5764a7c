"""What a reward model is trained on: pairs with their pictures or latents, and samples of the policy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.assembly.encoding import encoding_first
from unifl.assembly.locate import locate_model
from unifl.assembly.reward_train_config import PolicyConfig, RewardTrainConfig
from unifl.data.pictures import check_picture, fit_picture, read_picture, to_tensor
from unifl.data.preferences import Filters, PreferenceIndex, read_preferences, select
from unifl.data.preferences.encoded_sets import EncodedPairs, encode_preferences
from unifl.data.preferences.kept_pictures import KeptPictures
from unifl.data.store import METADATA
from unifl.data.text_files import json_rows, read_text
from unifl.errors import UserError
from unifl.feedback.latent_proxy import LatentProxyConfig
from unifl.feedback.scorers.files import tokenizer_and_looking
from unifl.losses.reward_modelling import spread
from unifl.models import Generator, load_generator
from unifl.randomness import row_order

_SMALL = 64
_POLICY_PICTURES = 1024  # of the policy that stay in memory


def open_pairs(config: RewardTrainConfig, data: str) -> KeptPictures:
    """Index pairs and look at every picture once.

    Raises:
        UserError: Likes in place of pairs, or pictures that cannot be read.
    """
    index = read_preferences(
        data, form=config.form, split=config.split, images=config.images, score=config.score
    )
    if not isinstance(index, PreferenceIndex):
        raise UserError(f"{data} holds likes, which are no pairs; a reward model is fitted to pairs")
    chosen, _ = select(index, Filters(), ties=config.ties)
    rows = KeptPictures(chosen, resolution=_resolution(config))
    rows.checked(sizes=False)
    return rows


def open_autoencoder(config: RewardTrainConfig, device: str) -> Generator:
    """The model whose latents are judged.

    Raises:
        UserError: See `load_generator`.
    """
    found = locate_model(config.autoencoder)
    return load_generator(found.source, roles=(), lora=found.lora, device=device)


def with_towers(config: RewardTrainConfig, generator: Generator) -> RewardTrainConfig:
    """Settings in which every tower has a shape: one that was given, or one that suits the latents of a model.

    Raises:
        UserError: A given one is for other latents.
    """
    own = latent_shape(generator)
    network = replace(config.network, latents=config.network.latents or own)
    voters = config.voters
    if voters is not None:
        voters = replace(voters, latents=voters.latents or network.latents)
    for name, shape in (("network", network.latents), ("voters", voters and voters.latents)):
        for setting in ("channels", "size", "scaling_factor", "shift"):
            given, wanted = getattr(shape or own, setting), getattr(own, setting)
            if not math.isclose(given, wanted, rel_tol=1e-4):
                raise UserError(
                    f"{name}.latents.{setting} is {given:g}, and that of the latents of {config.autoencoder} is "
                    f"{wanted:g}; write that, or leave out {name}.latents"
                )
    return replace(config, network=network, voters=voters)


def encoded(generator: Generator, rows: KeptPictures, folder: Path) -> EncodedPairs:
    """Latents of the pairs, kept in a folder.

    Raises:
        UserError: See `encode_preferences`.
    """
    with encoding_first("pairs") as progress:
        pairs = encode_preferences(
            generator, rows.at(generator.image_size[0]), folder, batch_size=32, progress=progress
        )
    assert isinstance(pairs, EncodedPairs)
    pairs.check(generator)
    return pairs


def latent_shape(generator: Generator) -> LatentProxyConfig:
    """Towers for the latents of a model: small ones for small latents."""
    channels, size, _ = generator.latent_shape
    vae = generator.pipeline.vae.config
    return LatentProxyConfig(
        channels=channels,
        size=size,
        scaling_factor=vae.scaling_factor,
        shift=vae.get("shift_factor") or 0.0,
        tower="resnet",
        width=32 if size <= 16 else 64,
        depth=4 if size <= 16 else 8,
        embedding=128 if size <= 16 else 512,
        text="hashed",
        text_width=64,
        text_depth=1,
    )


def check_policy(policy: PolicyConfig) -> None:
    """Find the samples of a policy and look at each of their files.

    Raises:
        UserError: See `policy_spread`, or a picture that cannot be read.
    """
    for _, paths in _samples(policy):
        for path in paths:
            check_picture(path)


def policy_spread(
    policy: PolicyConfig, network: nn.Module, *, resolution: int | None, seed: int
) -> Callable[[int], Float[Tensor, ""]]:
    """The spread of a network's rewards over samples of the policy, by step.

    Raises:
        UserError: No folder of samples, a row without picture and prompt, or no prompt with enough of them.
    """
    groups = _samples(policy)

    @lru_cache(maxsize=_POLICY_PICTURES)
    def read(path: Path) -> Tensor:
        return to_tensor(fit_picture(read_picture(path), resolution))

    def found(step: int) -> Tensor:
        device = next(network.parameters()).device
        images, prompts = [], []
        for place in range(policy.prompts):
            number = (step - 1) * policy.prompts + place
            prompt, paths = groups[row_order(len(groups), seed, "meta", number)]
            for turn in range(policy.samples):
                at = row_order(len(paths), seed, f"meta/{prompt}", number * policy.samples + turn)
                images.append(read(paths[at]))
                prompts.append(prompt)
        scores = network(torch.stack(images).to(device), prompts).float()
        return spread(scores.view(policy.prompts, policy.samples)).mean()

    return found


def _samples(policy: PolicyConfig) -> list[tuple[str, list[Path]]]:
    folder = Path(policy.folder).expanduser()
    path = folder / METADATA
    if not path.is_file():
        raise UserError(f"{folder} has no {METADATA}; draw samples of the policy with `unifl generate`")
    by_prompt: dict[str, list[Path]] = defaultdict(list)
    for number, row in enumerate(json_rows(read_text(path), path), start=1):
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("file_name"), str):
            raise UserError(
                f"row {number} of {path} needs file_name and prompt, and has {', '.join(sorted(row))}"
            )
        by_prompt[row["prompt"]].append(folder / row["file_name"])
    groups = [(prompt, paths) for prompt, paths in by_prompt.items() if len(paths) >= policy.samples]
    if not groups:
        raise UserError(
            f"no prompt of {folder} has {policy.samples} samples; draw more of each (--count), or lower policy.samples"
        )
    return groups


def _resolution(config: RewardTrainConfig) -> int | None:
    network: Any = config.network
    if config.resolution is not None or network.backbone == "latent":
        return config.resolution
    return _SMALL if network.base is None else tokenizer_and_looking(network.base, None)[1].size
