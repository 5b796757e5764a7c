"""Names and settings of data become sources; pictures are fitted to the model, and encoded where that is asked for."""

from __future__ import annotations

from pathlib import Path

import torch

from unifl.assembly import world_names
from unifl.assembly.data_config import CocoConfig, PicturesConfig
from unifl.assembly.encoding import encoding_first
from unifl.assembly.objects import is_dotted, make_object
from unifl.assembly.preference_sources import PreferenceRows, open_preferences, prepared_preferences
from unifl.assembly.preferences_config import DataConfig, PreferencesConfig
from unifl.data import (
    AnnotatedImages,
    BucketedPictures,
    CocoImages,
    HubPictures,
    ShardedPictures,
    load_prompts,
)
from unifl.data.encode import encode_source
from unifl.data.encoded import EncodedPictures
from unifl.data.reading import Reading
from unifl.errors import UserError
from unifl.feedback.pretrained import label_names
from unifl.methods.base import Source
from unifl.models import Generator

_FILES = (AnnotatedImages, CocoImages, ShardedPictures, HubPictures)


def source(given: DataConfig, *, name: str, resolution: int | None = None) -> Source:
    """Data: `world:prompts|scenes|curated|validation`, a file of prompts, a folder of pictures, a dotted path, or more.

    Files are checked row by row here, so that a bad one shows before anything long starts.

    Args:
        given: See above, and `CocoConfig`, `PicturesConfig` and `PreferencesConfig`.
        name: What the recipe calls it.
        resolution: Pixels that pictures are brought to.

    Raises:
        UserError: Nothing of that name, an empty file, an unreadable picture, a mask of the wrong size.
    """
    if not isinstance(given, str):
        try:
            if isinstance(given, PreferencesConfig):
                return open_preferences(given, resolution)
            return (
                _coco(given, resolution)
                if isinstance(given, CocoConfig)
                else _pictures(given, name, resolution)
            )
        except UserError as error:
            told = str(error)
            raise UserError(told if told.startswith(f"data.{name}") else f"data.{name}: {told}") from error
    if given.startswith(world_names.PREFIX):
        return world_names.source(given)
    if is_dotted(given):
        found = make_object(given)
        if not isinstance(found, Source):
            raise UserError(f"data.{name}: {given} has no length or no rows; return a list or a data set")
        return found
    path = Path(given).expanduser()
    if path.is_dir():
        pictures = AnnotatedImages(path, resolution=resolution)
        pictures.validate()
        return pictures
    if not path.exists() and not path.suffix:
        raise UserError(f"data.{name}: there is no file or folder {given}; check the path")
    return load_prompts(path)


def _coco(given: CocoConfig, resolution: int | None) -> CocoImages:
    names = given.categories if given.labels_of is None else label_names(given.labels_of)
    pictures = CocoImages(
        given.images,
        given.captions,
        instances=given.instances,
        stuff=given.stuff,
        categories=names,
        resolution=resolution,
    )
    pictures.validate()
    return pictures


def _pictures(given: PicturesConfig, name: str, resolution: int | None) -> Source:
    if given.source is not None:
        return source(given.source, name=name)
    found: AnnotatedImages | ShardedPictures | HubPictures
    if given.folder is not None:
        found = AnnotatedImages(given.folder, resolution=resolution)
    elif given.shards is not None:
        found = ShardedPictures(
            given.shards,
            resolution=resolution,
            caption_key=given.caption_key,
            allow_incomplete=given.allow_incomplete,
            skip_without_caption=given.skip_without_caption,
        )
    else:
        assert given.hub is not None
        found = HubPictures(
            given.hub,
            split=given.split,
            image_column=given.image_column,
            caption_column=given.caption_column,
            resolution=resolution,
        )
    found.validate()
    return found


def prompts_of(found: Source, name: str) -> list[str]:
    """The first column of a source, for drawing: its prompts.

    Raises:
        UserError: Rows that are no prompts.
    """
    rows = [found[row] for row in range(len(found))]
    if not all(isinstance(row, str) for row in rows):
        raise UserError(
            f"{name} holds {type(rows[0]).__name__} rows where prompts are needed; name a file of prompts"
        )
    return rows


def prepared(
    found: Source, given: DataConfig, generator: Generator, *, name: str, seed: int, batch_size: int
) -> Source:
    """A source as a run reads it: of the model's size or in buckets, encoded or not, in its order.

    Args:
        found: What `source` gave.
        given: What the recipe says of it.
        generator: The model.
        name: What the recipe calls it.
        seed: Seed of the run.
        batch_size: Rows of a micro-batch.

    Raises:
        UserError: Pictures of several sizes and none to bring them to; see `encode_source`, `encode_preferences` and
            `Reading`.
    """
    if isinstance(given, PreferencesConfig):
        assert isinstance(found, PreferenceRows)
        return prepared_preferences(found, given, generator, name=name)
    if not isinstance(given, PicturesConfig):
        return _fitted(found, generator)
    rows, buckets = found, None
    if given.buckets is not None:
        how = given.buckets
        assert isinstance(found, _FILES)
        rows = BucketedPictures(
            found,
            _resolution(generator),
            multiple=how.multiple,
            max_aspect=how.max_aspect,
            crop=how.crop,
            seed=seed,
        )
    else:
        rows = _fitted(found, generator)
    if given.encode is not None:
        rows = _encoded(rows, given, generator, name)
    if given.buckets is not None:
        assert isinstance(rows, BucketedPictures | EncodedPictures)
        buckets = rows.bucket_numbers()
    empty = None
    if given.caption_dropout > 0 and given.encode is not None and given.encode.with_text:
        empty = generator.encode_prompts([""])
    return Reading(
        rows,
        name=name,
        seed=seed,
        buckets=buckets,
        batch_size=batch_size,
        caption_dropout=given.caption_dropout,
        empty=empty,
    )


def _encoded(rows: Source, given: PicturesConfig, generator: Generator, name: str) -> EncodedPictures:
    """Everything encoded."""
    how = given.encode
    assert how is not None
    with encoding_first(name) as progress:
        cache = encode_source(
            generator,
            rows,
            how.folder,
            batch_size=how.batch_size,
            rows_per_shard=how.rows_per_shard,
            dtype=how.dtype,
            with_text=how.with_text,
            progress=progress,
        )
    cache.check(generator)
    return cache


def _fitted(found: Source, generator: Generator) -> Source:
    """Files of pictures give pictures of the model's size; nothing is scaled for one that is not square."""
    if isinstance(found, _FILES):
        height, width = generator.image_size
        if height == width:
            return found.at(height)
        found.require_one_size()
    return found


def _resolution(generator: Generator) -> int:
    """Side of the square that has as many pixels as what the model draws."""
    height, width = generator.image_size
    return round(float(torch.tensor(float(height * width)).sqrt()))
