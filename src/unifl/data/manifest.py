"""What the manifest of an encoded cache says, and whether a model may use it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from torch import nn

from unifl.disk import write_atomically
from unifl.errors import UserError
from unifl.models.generator import Generator
from unifl.models.prompts import text_encoder_names

MANIFEST = "manifest.json"
FORMAT = 1

CacheType = Literal["float32", "float16"]

_TELLING = (  # what names and shapes of weights do not tell; other keys come and go with versions
    "act_fn",
    "norm_num_groups",
    "down_block_types",
    "mid_block_add_attention",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "eos_token_id",
)


@dataclass(frozen=True)
class EncoderIdentity:
    """What decides the numbers in a cache.

    Attributes:
        vae: SHA-256 over the autoencoder's weights and config.
        scaling_factor: Of latents.
        shift_factor: Of latents.
        text_encoders: SHA-256 over the weights and configs of the text encoders; None where embeddings are not kept.
        model: What the generator was loaded from; for messages alone.
    """

    vae: str
    scaling_factor: float
    shift_factor: float
    text_encoders: str | None
    model: str = ""

    @property
    def shown(self) -> str:
        """For messages."""
        return self.model or "a model in memory"


@dataclass(frozen=True)
class ShardRecord:
    """One file of a cache."""

    rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        rows: Of the whole cache.
        rows_per_shard: Of every shard but the last.
        dtype: Of means, standard deviations and embeddings.
        image_size: (height, width) in px of the model, or of the square that buckets go around.
        sizes: (height, width) of pictures by bucket number; one where there are no buckets.
        latent_shapes: (channels, height, width) by bucket number.
        with_text: Whether embeddings are kept.
        with_time_ids: Whether SDXL's six numbers are kept.
        mixed_precision: What the networks were evaluated in.
        encoder: See `EncoderIdentity`.
        shards: Finished files by name.
        format: Of these files.
    """

    rows: int
    rows_per_shard: int
    dtype: CacheType
    image_size: tuple[int, int]
    sizes: list[tuple[int, int]]
    latent_shapes: list[tuple[int, int, int]]
    with_text: bool
    with_time_ids: bool
    mixed_precision: str
    encoder: EncoderIdentity
    shards: dict[str, ShardRecord] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def num_shards(self) -> int:
        """Files of the finished cache."""
        return -(-self.rows // self.rows_per_shard)

    def shard_rows(self, number: int) -> range:
        """The rows in one file."""
        start = number * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.rows))

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, whole or not at all."""
        write_atomically(folder / MANIFEST, json.dumps(asdict(self), indent=1).encode())


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
        UserError: There is none, or it is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} holds no encoded data (no {MANIFEST}); encode it first, or check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise UserError(
                f"{path} has format {content.get('format')}, and this version reads {FORMAT}; encode again"
            )
        return TypeAdapter(Manifest).validate_python(content)
    except (ValueError, ValidationError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged; remove the folder and encode again") from error


def identify(generator: Generator, *, with_text: bool) -> EncoderIdentity:
    """Hash what encodes: seconds for a large model.

    Weights are hashed by value, whatever the type they are held in.

    Args:
        generator: The model.
        with_text: Whether its text encoders count.
    """
    pipeline = generator.pipeline
    config = pipeline.vae.config
    names = text_encoder_names(pipeline) if with_text else []
    return EncoderIdentity(
        vae=_hash([pipeline.vae]),
        scaling_factor=config.scaling_factor,
        shift_factor=config.get("shift_factor") or 0.0,
        text_encoders=_hash([getattr(pipeline, name) for name in names]) if with_text else None,
        model=str(generator.source),
    )


def check_identity(
    manifest: Manifest, folder: Path, ours: EncoderIdentity, image_size: tuple[int, int]
) -> None:
    """Refuse latents that another encoder made, or of another resolution.

    Args:
        manifest: Of the cache.
        folder: Where it is.
        ours: Of the model that is to use it; its text encoders count only where the cache keeps embeddings.
        image_size: That the model draws.

    Raises:
        UserError: With both sides.
    """
    theirs = manifest.encoder
    advice = "encode the data again into another folder, or use the model that they were encoded with"
    if ours.vae != theirs.vae:
        raise UserError(
            f"the latents in {folder} are from the autoencoder of {theirs.shown} (sha256 {theirs.vae[:12]}), and this "
            f"model, {ours.shown}, has another one (sha256 {ours.vae[:12]}); {advice}"
        )
    for name in ("scaling_factor", "shift_factor"):
        if getattr(ours, name) != getattr(theirs, name):
            raise UserError(
                f"the latents in {folder} were scaled with {name} {getattr(theirs, name):g}, and this model has "
                f"{getattr(ours, name):g}; {advice}"
            )
    if tuple(image_size) != tuple(manifest.image_size):
        theirs_size, ours_size = _px(manifest.image_size), _px(image_size)
        raise UserError(
            f"the latents in {folder} are of pictures of {theirs_size}, and this model draws {ours_size}; set its "
            "resolution to that, or encode the data again into another folder"
        )
    if None not in (ours.text_encoders, theirs.text_encoders) and ours.text_encoders != theirs.text_encoders:
        raise UserError(
            f"the embeddings in {folder} are from the text encoders of {theirs.shown} (sha256 "
            f"{(theirs.text_encoders or '')[:12]}), and this model, {ours.shown}, has others (sha256 "
            f"{(ours.text_encoders or '')[:12]}); {advice}"
        )


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _hash(modules: list[nn.Module]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        config = {name: getattr(module.config, name, None) for name in _TELLING}
        digest.update(f"{type(module).__name__} {json.dumps(config)}".encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
