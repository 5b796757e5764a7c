"""Preference data whose pictures stay in memory after they were read once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.preference_set import PreferenceSet

_ROOM = 2 * 1024**3  # bytes


class KeptPictures(PreferenceSet):
    """A `PreferenceSet` that opens each picture once, as far as there is room for eight bits a channel.

    Args:
        index: Which comparisons.
        resolution: Side in px of the centre square that every picture is scaled to; None leaves sizes alone.
        room: Bytes that may be kept.
    """

    def __init__(self, index: PreferenceIndex, *, resolution: int | None = None, room: int = _ROOM) -> None:
        super().__init__(index, resolution=resolution)
        self._room = room
        self._kept: dict[int, Tensor] = {}

    def image(self, picture: int) -> Float[Tensor, "3 h w"]:
        """One picture of the index, by its number; exactly what a `PreferenceSet` gives."""
        if picture in self._kept:
            return self._kept[picture].float() / 255
        found = super().image(picture)
        if self._room >= found.numel():
            self._kept[picture] = (found * 255).round().to(torch.uint8)
            self._room -= found.numel()
        return found
