"""What a denoiser is told besides x_t and t, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unifl.errors import UserError


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts of a batch.

    Attributes:
        embeds: One vector per token (b, l, d).
        pooled: One vector per prompt (b, p); SDXL and Stable Diffusion 3 only.
        time_ids: Original height and width, top and left of the crop, target height and width, in pixels (b, 6);
            SDXL only.
        user: n vectors that stand for the user whom each sample is for (b, n, e), zeros for an unknown one; only for a
            model with a user adapter, where None means that all are unknown.
    """

    embeds: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b p"] | None = None
    time_ids: Float[Tensor, "b 6"] | None = None
    user: Float[Tensor, "b n e"] | None = None

    def __len__(self) -> int:
        """Batch size b."""
        return len(self.embeds)

    def repeat(self, times: int) -> Conditioning:
        """The whole batch `times` times in a row: (b, ...) becomes (times * b, ...)."""
        return self._each(lambda tensor: tensor.repeat(times, *(1 for _ in tensor.shape[1:])))

    def rows(self, index: Int64[Tensor, " n"]) -> Conditioning:
        """Some of the rows."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Moved and converted; None leaves as it is."""
        return self._each(lambda tensor: tensor.to(device=device, dtype=dtype))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch after the other; all parts must come from models of one family.

        Raises:
            UserError: Users that are given by different numbers of vectors.
        """

        def joined(tensors: list[Tensor | None]) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(present) if present else None

        embeds = torch.cat([part.embeds for part in parts])
        return Conditioning(
            embeds,
            joined([part.pooled for part in parts]),
            joined([part.time_ids for part in parts]),
            _joined_users(parts),
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(
            change(self.embeds),
            None if self.pooled is None else change(self.pooled),
            None if self.time_ids is None else change(self.time_ids),
            None if self.user is None else change(self.user),
        )


def _joined_users(parts: Sequence[Conditioning]) -> Tensor | None:
    """Users of one batch after the other, with zeros for parts that have none."""
    known = [part.user for part in parts if part.user is not None]
    if not known:
        return None
    if len({user.shape[1:] for user in known}) > 1:
        shapes = sorted({tuple(user.shape[1:]) for user in known})
        raise UserError(f"users of one batch have the shapes {shapes}; give all the same number of vectors")
    return torch.cat(
        [
            known[0].new_zeros(len(part), *known[0].shape[1:]) if part.user is None else part.user
            for part in parts
        ]
    )


@dataclass(frozen=True)
class Prediction:
    """One evaluation of the denoiser; every tensor in float32.

    Attributes:
        x_t: The noisy latents that went in (b, c, h, w).
        t: Their times (b,), 1 is noise.
        raw: What the network said, after guidance (b, c, h, w); `Generator.kind` tells what it means.
        x0: The clean latents that follow from it.
        eps: The noise that follows from it.
    """

    x_t: Float[Tensor, "b c h w"]
    t: Float[Tensor, " b"]
    raw: Float[Tensor, "b c h w"]
    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
