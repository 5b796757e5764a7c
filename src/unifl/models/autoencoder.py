"""The autoencoder of a pipeline: its precision, its scaling, and how it decodes with a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from unifl.errors import UserError
from unifl.models.checkpointing import checkpointed_decoder

DecodePrecision = Literal["auto", "float32", "bfloat16"]


class Autoencoder:
    """The network of a pipeline, asked in units of scaled latents and of pictures in [-1, 1].

    Args:
        vae: A diffusers `AutoencoderKL`.
        autocast: The mixed precision of the generator.
        is_float16: Whether that is float16.
    """

    def __init__(
        self, vae: Any, *, autocast: Callable[[], AbstractContextManager[Any]], is_float16: bool
    ) -> None:
        self.vae = vae
        self._autocast, self._is_float16 = autocast, is_float16

    @property
    def overflows(self) -> bool:
        """Whether the network overflows in float16; that of SDXL does, and says so in its config."""
        return bool(self.vae.config.get("force_upcast"))

    def check_decode(self, dtype: DecodePrecision) -> None:
        """See `Generator.check_decode`."""
        weights = dtype_of(self.vae)
        if dtype == "float32" and weights != torch.float32:
            raise UserError(
                f"decode.dtype is float32, but the autoencoder was loaded in {str(weights).removeprefix('torch.')}; "
                "set model.dtype to float32, or decode.dtype to auto"
            )

    def posterior(self, images: Tensor, device: torch.device, *, grad: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and deviation before scaling, of pictures in [0, 1]."""
        recording = torch.set_grad_enabled(grad and torch.is_grad_enabled())
        with recording, self._precision("auto", device):
            posterior = self.vae.encode((images * 2 - 1).to(device, dtype_of(self.vae))).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents of the network as the denoiser sees them."""
        return (latents - self._shift) * self.scale

    @property
    def scale(self) -> float:
        """The factor between the two."""
        factor: float = self.vae.config.scaling_factor
        return factor

    def decode(
        self,
        latents: Tensor,
        dtype: DecodePrecision,
        device: torch.device,
        *,
        checkpoint: bool,
        slicing: bool,
    ) -> Tensor:
        """Scaled latents to pictures in [0, 1]; a gradient passes the clamp as if it were not there."""
        parts = latents.split(1) if slicing else (latents,)
        recomputing = checkpoint and torch.is_grad_enabled()
        decoded = [self._decode_part(part, dtype, device, recomputing, alone=slicing) for part in parts]
        return _StraightThroughClamp.apply(torch.cat(decoded) * 0.5 + 0.5)

    def _decode_part(
        self, latents: Tensor, dtype: DecodePrecision, device: torch.device, recomputing: bool, *, alone: bool
    ) -> Tensor:
        def blockwise(part: Tensor) -> Tensor:
            with checkpointed_decoder(self.vae.decoder):
                return self._decode_raw(part, dtype, device)

        if not recomputing:
            return self._decode_raw(latents, dtype, device)
        return recompute(blockwise, latents, use_reentrant=False) if alone else blockwise(latents)

    def _decode_raw(self, latents: Tensor, dtype: DecodePrecision, device: torch.device) -> Tensor:
        with self._precision(dtype, device):
            unscaled = latents / self.scale + self._shift
            return self.vae.decode(unscaled.to(device, dtype_of(self.vae)), return_dict=False)[0].float()

    def _precision(self, dtype: DecodePrecision, device: torch.device) -> AbstractContextManager[Any]:
        if dtype == "bfloat16":
            return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
        if dtype == "float32" or (self._is_float16 and self.overflows):
            return torch.autocast(device.type, enabled=False)
        return self._autocast()

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0


class _StraightThroughClamp(torch.autograd.Function):
    """Clamps to [0, 1] forward; backward is the identity."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def dtype_of(module: nn.Module) -> torch.dtype:
    """The type of a network's weights, from its first parameter."""
    # the property of diffusers walks every module: a tenth of a small network's evaluation
    return next(module.parameters()).dtype
