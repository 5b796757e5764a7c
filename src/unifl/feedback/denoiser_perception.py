"""The model's own frozen encoder as a critic: what its down path sees in the picture drawn, and in the real one.

    L = mean |f(x_t, c, t) - f(y_t, c, t)|^2,    x_t = alpha z(x') + sigma eps,    y_t = alpha z(x) + sigma eps

x' is the picture drawn, x the real one, z the autoencoder, and f as in `unifl.models.features`. It needs no weights
beside the model's. The self-perceptual loss of Lin and Yang (arXiv 2401.00110), between pictures in place of
predictions at one state, as a critic of UniFL (arXiv 2404.05595, section 4.1).

A critic is called with pictures alone and draws without a key. Time and noise are therefore a function of the caption
and a seed: one picture has the same in every epoch, other captions have others, and neither the place in a batch nor
the number of processes counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unifl.data import Batch
from unifl.errors import UserError
from unifl.feedback.by_picture import by_picture
from unifl.feedback.perception_config import DenoiserConfig
from unifl.losses.precision import at_least_float32
from unifl.models.conditioning import Conditioning
from unifl.models.features import ROLE, EncoderFeatures
from unifl.models.generator import Generator
from unifl.randomness import Key


class DenoiserCritic:
    """See the top of this file; satisfies `feedback.base.Critic`.

    Args:
        generator: The model in training. It gets the role `reference`, whose encoder looks: in full fine-tuning a copy
            of the networks that train, elsewhere nothing.
        config: Settings.
        name: Name of losses and metrics.

    Raises:
        UserError: A layer that the backbone does not have, or a model that has begun to train without a reference.
    """

    needs: frozenset[str] = frozenset({"image"})

    def __init__(self, generator: Generator, config: DenoiserConfig, *, name: str = "perception") -> None:
        self.generator, self.config, self.name = generator, config, name
        self.features = EncoderFeatures(generator, layer=config.layer)
        generator.roles.add(ROLE)

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Mean squared difference of features to those of the real pictures of the batch.

        Raises:
            UserError: Pictures of another size than the real ones.
        """
        if images.shape != batch.images.shape:
            raise UserError(
                f"the critic {self.name!r} compares pictures of {tuple(images.shape[-2:])} px with real ones of "
                f"{tuple(batch.images.shape[-2:])}; give it real pictures of the model's size"
            )
        cond = self.generator.encode_prompts(batch.prompts, role=ROLE)
        if batch.time_ids is not None and self.generator.is_xl:
            cond = replace(cond, time_ids=batch.time_ids)
        with torch.no_grad():
            real = self.generator.encode(batch.images)
            t, eps = self._draws(batch.prompts, real)
            target = self._seen(real, t, eps, cond)

        def loss(pictures: Float[Tensor, "b 3 h w"], rows: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
            latents = self.generator.encode(pictures, grad=True)
            found = self._seen(latents, t[rows], eps[rows], cond.rows(rows))
            return _mean_square_difference(found, [whole[rows] for whole in target])

        everyone = torch.arange(len(images), device=t.device)
        return by_picture(loss, images, everyone, checkpointing=self.config.checkpointing)

    def pseudo(self, batch: Batch) -> Batch:
        """Unchanged: the real picture itself is the target."""
        return batch

    def _seen(self, latents: Tensor, t: Tensor, eps: Tensor, cond: Conditioning) -> list[Tensor]:
        return self.features(self.generator.process.add_noise(latents, eps, t), t, cond)

    def _draws(self, prompts: Sequence[str], latents: Tensor) -> tuple[Tensor, Tensor]:
        key = Key(self.config.seed, 0, tuple(zlib.crc32(prompt.encode()) for prompt in prompts))
        first, last = self.config.times
        count = self.generator.num_train_timesteps
        t = (first + (last - first) * key.uniform("perception/time")).mul(count).round().clamp(
            1, count
        ) / count
        eps = key.normal("perception/noise", latents.shape[1:], device=latents.device, dtype=latents.dtype)
        return t.to(latents.device), eps


def _mean_square_difference(maps: Sequence[Tensor], others: Sequence[Tensor]) -> Float[Tensor, " b"]:
    """Mean over all dimensions of all maps but the batch."""
    errors = [
        (at_least_float32(a) - at_least_float32(b)).square().flatten(1)
        for a, b in zip(maps, others, strict=True)
    ]
    return torch.cat(errors, 1).mean(1)
