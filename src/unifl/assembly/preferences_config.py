"""Preference data in a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unifl.assembly.data_config import CocoConfig, EncodeConfig, PicturesConfig
from unifl.data.preferences.filters import Filters, Ties
from unifl.data.preferences.forms import Form
from unifl.data.preferences.scored_forms import Pairing
from unifl.errors import UserError


@dataclass(kw_only=True)
class PreferencesConfig:
    """Pairs of which one was preferred, or pictures that were judged one by one; see `unifl.data.preferences`."""

    kind: Literal["preferences"] = "preferences"
    path: str | list[str]
    """A folder, a .jsonl, .json or .parquet file, several parquet files, or `hub:NAME`, which needs `datasets`."""
    form: Form = "auto"
    """What the columns are; auto looks at them."""
    split: str | None = None
    """Which part of a folder or of a hub data set; null takes a folder that has one alone, and the hub's train."""
    images: str | None = None
    """Folder that names of pictures start from; that of the data by default."""
    score: str | None = None
    """For a sample store: which score."""
    pairing: Pairing = "all"
    """For a sample store: every two samples of a prompt, or its extremes."""
    min_gap: float = 0.0
    """For a sample store: smallest difference of scores of a pair."""
    unpaired: bool = False
    """For a sample store: its samples with their scores, in place of pairs."""
    filters: Filters = field(default_factory=Filters)
    """Which pairs to keep."""
    ties: Ties = "drop"
    """Whether pairs that nobody won stay."""
    allow_duplicates: bool = True
    """Whether a row that says exactly what another says stays."""
    skip_unreadable: bool = False
    """Leave out rows whose pictures cannot be read, in place of an error."""
    encode: EncodeConfig | None = None
    """Encode pictures once; null encodes in every step."""

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("path names no preference data; write a folder, a file or hub:NAME")


DataConfig = str | CocoConfig | PicturesConfig | PreferencesConfig
"""A source of a recipe."""
