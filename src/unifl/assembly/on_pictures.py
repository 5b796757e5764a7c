"""Reward models on latents, shown pictures through the autoencoder that they were trained behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.assembly.locate import locate_model
from unifl.data.manifest import identify
from unifl.errors import UserError
from unifl.feedback import Feedback
from unifl.feedback.base import Space
from unifl.feedback.reward_models import TrainedReward
from unifl.models import Generator, load_generator
from unifl.models.autoencoder import Autoencoder

AUTOENCODER = "autoencoder"
"""What `reward.json` calls it, among what was found."""


def autoencoder_facts(model: str, generator: Generator) -> dict[str, Any]:
    """What a reward model on latents remembers of where they come from.

    Args:
        model: The name that the model goes by.
        generator: The model.
    """
    vae, folder = identify(generator, with_text=False).vae, Path(model).expanduser()
    model = str(folder.resolve()) if folder.exists() else model  # so that it is found from elsewhere, too
    return {"model": model, "vae_sha256": vae, "image_size": list(generator.image_size)}


def on_pictures(reward: Feedback, *, device: torch.device | str = "cpu") -> Feedback:
    """A reward as it is or, where it is a reward model that knows its autoencoder, behind that.

    Args:
        reward: Any.
        device: Where the autoencoder goes.

    Raises:
        UserError: The autoencoder is not there any more, or is another one.
    """
    if not isinstance(reward, TrainedReward) or reward.space == "pixel" or AUTOENCODER not in reward.found:
        return reward
    known = reward.found[AUTOENCODER]
    located = locate_model(known["model"])
    try:
        generator = load_generator(located.source, roles=(), lora=located.lora)
    except UserError as error:
        raise UserError(f"{reward.name} judges latents of {known['model']}, and {error}") from error
    if autoencoder_facts(known["model"], generator) != known:
        raise UserError(
            f"{reward.name} was trained on latents of {known['model']}, which has another autoencoder or resolution "
            "now; train it again"
        )
    vae = generator.pipeline.vae.to(device)  # the other networks are not needed, and stay behind
    return BehindAutoencoder(reward, vae, generator.image_size)


class BehindAutoencoder:
    """A reward on latents as one on pictures, without gradient.

    Args:
        reward: A reward model on its latents.
        vae: The autoencoder, a diffusers `AutoencoderKL`.
        image_size: (height, width) in px of the pictures that it was trained on.

    Attributes:
        network: Everything that decides a score.
    """

    space: Space = "pixel"
    differentiable: bool = False

    def __init__(self, reward: TrainedReward, vae: Any, image_size: tuple[int, int]) -> None:
        self.reward, self.image_size = reward, image_size
        self.name, self.needs, self.range = reward.name, reward.needs, reward.range
        self.network = nn.ModuleList([reward.network, vae])
        self._autoencoder = Autoencoder(vae, autocast=nullcontext, is_float16=False)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Rewards of the modes of the pictures' latents.

        Raises:
            UserError: Pictures of another size than that of the training.
        """
        height, width = self.image_size
        if tuple(images.shape[2:]) != (height, width):
            raise UserError(
                f"{self.name} judges latents of pictures of {height} x {width} px, and these are of "
                f"{images.shape[2]} x {images.shape[3]}; bring them to that size, as reward eval does with "
                f"--resolution {height}"
            )
        mean, _ = self._autoencoder.posterior(images, images.device)
        return self.reward(self._autoencoder.scaled(mean), prompts)
