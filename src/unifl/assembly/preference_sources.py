"""Preference data of a recipe become rows that methods read."""

from __future__ import annotations

import warnings
from pathlib import Path

from unifl.assembly.encoding import encoding_first
from unifl.assembly.preferences_config import PreferencesConfig
from unifl.data.preferences import Filters, JudgedIndex, JudgedSet, PreferenceSet, read_preferences, select
from unifl.data.preferences.encoded_sets import EncodedJudgedSet, EncodedPairs, encode_preferences
from unifl.data.preferences.places import HUB
from unifl.errors import UserError
from unifl.models import Generator

PreferenceRows = PreferenceSet | JudgedSet


def open_preferences(given: PreferencesConfig, resolution: int | None = None) -> PreferenceRows:
    """Index and filter data; pictures are looked at here, unless encoding looks at them anyway.

    Args:
        given: What the recipe says of them.
        resolution: Pixels that pictures are brought to.

    Raises:
        UserError: See `read_preferences`; nothing is left; filters for pictures that are no pairs; pictures that cannot
            be read.
    """
    index = read_preferences(
        _expanded(given.path),
        form=given.form,
        split=given.split,
        images=given.images,
        score=given.score,
        pairing=given.pairing,
        min_gap=given.min_gap,
        unpaired=given.unpaired,
    )
    rows: PreferenceRows
    if isinstance(index, JudgedIndex):
        if given.filters != Filters() or given.ties == "keep" or not given.allow_duplicates:
            raise UserError(
                f"filters, ties and allow_duplicates are for pairs, and {index.shown} holds pictures that were judged "
                "one by one; leave them out"
            )
        rows = JudgedSet(index, resolution=resolution)
    else:
        chosen, _ = select(index, given.filters, ties=given.ties, allow_duplicates=given.allow_duplicates)
        rows = PreferenceSet(chosen, resolution=resolution)
    if given.encode is None:
        rows = rows.checked(skip_unreadable=given.skip_unreadable, sizes=False)
        _tell_left_out(rows.left_out)
    return rows


def prepared_preferences(
    rows: PreferenceRows, given: PreferencesConfig, generator: Generator, *, name: str
) -> PreferenceRows | EncodedPairs | EncodedJudgedSet:
    """Rows in the size of the model, encoded where that is asked for.

    Args:
        rows: What `open_preferences` gave.
        given: What the recipe says of them.
        generator: The model.
        name: What the recipe calls them.

    Raises:
        UserError: Pictures of several sizes and none to bring them to; see `encode_preferences`.
    """
    height, width = generator.image_size
    # a centre square is all that pictures are cut to
    rows = rows.at(height if height == width else None)
    if given.encode is not None:
        return _encoded(rows, given, generator, name)
    if rows.resolution is None:
        rows = rows.checked(skip_unreadable=given.skip_unreadable)
        _tell_left_out(rows.left_out)
        rows.require_one_size()
    return rows


def _encoded(
    rows: PreferenceRows, given: PreferencesConfig, generator: Generator, name: str
) -> EncodedPairs | EncodedJudgedSet:
    """Everything encoded."""
    how = given.encode
    assert how is not None
    with encoding_first(name) as progress:
        found = encode_preferences(
            generator,
            rows,
            how.folder,
            batch_size=how.batch_size,
            rows_per_shard=how.rows_per_shard,
            dtype=how.dtype,
            with_text=how.with_text,
            skip_unreadable=given.skip_unreadable,
            progress=progress,
        )
    found.check(generator)
    _tell_left_out(found.left_out)
    return found


def _tell_left_out(left_out: list[str]) -> None:
    if left_out:
        warnings.warn(f"{len(left_out)} rows were left out; the first is {left_out[0]}", stacklevel=3)


def _expanded(path: str | list[str]) -> str | list[Path]:
    if isinstance(path, list):
        return [Path(part).expanduser() for part in path]
    return path if path.startswith(HUB) else str(Path(path).expanduser())
