"""What reward-gradient methods share: rows of a source, and the picture at the end of a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from unifl.data import Batch, Sample, collate
from unifl.data.encoded import EncodedBatch, EncodedSample
from unifl.errors import UserError, nearest
from unifl.methods.base import Source
from unifl.models.autoencoder import DecodePrecision
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.randomness import Key
from unifl.sampling import Rollout, RolloutConfig, draw_guidance, image_rollout, prompt_rollout


class Rows:
    """The rows of one source in one step; encoded once, however many terms use them.

    Args:
        generator: The model.
        data: Prompts, samples, or a collated batch, of pictures or of encoded ones.
    """

    def __init__(
        self, generator: Generator, data: Sequence[str] | Sequence[Sample] | Batch | EncodedBatch
    ) -> None:
        self._generator = generator
        if not isinstance(data, Batch | EncodedBatch) and len(data) and isinstance(data[0], Sample):
            data = collate(data)  # type: ignore[arg-type]
        together = isinstance(data, Batch | EncodedBatch)
        self.prompts: list[str] = data.prompts if together else list(data)  # type: ignore[union-attr, arg-type]
        self._batch = data.to(generator.device) if isinstance(data, Batch) else None
        self._encoded = data.to(generator.device) if isinstance(data, EncodedBatch) else None

    @property
    def batch(self) -> Batch:
        """The annotated pictures."""
        if self._encoded is not None:
            raise UserError(
                "a term that looks at real pictures was given encoded ones; name a source of pictures, or use the "
                "cache with a method that reads latents alone"
            )
        if self._batch is None:
            raise UserError(
                "a term that starts from real pictures was given prompts alone; name another source"
            )
        return self._batch

    @cached_property
    def cond(self) -> Conditioning:
        """Encoded prompts; with gradient where the text encoder trains, and with the time ids of the rows."""
        kept = None if self._encoded is None else self._encoded.cond
        cond = kept or self._generator.encode_prompts(self.prompts, grad=True)
        told = self._batch or self._encoded
        if not self._generator.is_xl:
            return replace(cond, time_ids=None)
        if told is not None and told.time_ids is not None:
            return replace(cond, time_ids=told.time_ids)
        return replace(cond, time_ids=self._generator.time_ids(len(cond)))

    @cached_property
    def latents(self) -> Float[Tensor, "b c h w"]:
        """Latents of the pictures: the mode of the posterior, so that nothing but the rollout is random."""
        if self._encoded is not None:
            return self._encoded.mean
        return self._generator.encode(self.batch.images)

    def drawn_latents(self, key: Key) -> Float[Tensor, "b c h w"]:
        """Latents of the pictures, drawn from the posterior."""
        if self._encoded is not None:
            return self._encoded.draw(key)
        return self._generator.encode(self.batch.images, key=key)

    @cached_property
    def reconstruction(self) -> Float[Tensor, "b 3 height width"]:
        """The pictures after encoding and decoding."""
        return self._generator.decode(self.latents)


@dataclass(frozen=True)
class Picture:
    """What a rollout ends in.

    Attributes:
        images: x0 of the graded evaluation, decoded, in [0, 1], with graph.
        rollout: How it came about.
        stop: Steps that were left after the graded evaluation.
        prompts: What it was told.
        cond: The same as the student reads it.
        negative_prompt: What its unconditional half was told; None is what the pipeline takes without one.
        negative: The same as the student reads it; None where there is no such half.
    """

    images: Float[Tensor, "b 3 h w"]
    rollout: Rollout
    stop: int
    prompts: list[str]
    cond: Conditioning
    negative_prompt: str | None
    negative: Conditioning | None


@dataclass(kw_only=True)
class DecodeConfig:
    """How x0 is decoded with a graph, in exchange of time for memory."""

    checkpoint: bool = False
    """Recompute the decoder during backward."""
    slicing: bool = False
    """One picture at a time."""
    dtype: DecodePrecision = "auto"
    """Precision of the decoder: auto is the mixed precision, but float32 in place of float16 where the autoencoder
    overflows in that (SDXL's does); bfloat16 has the range of float32 in half the bytes."""


def picture_from_noise(
    generator: Generator, rows: Rows, key: Key, config: RolloutConfig, decode: DecodeConfig, *, purpose: str
) -> Picture:
    """Rollout from pure noise, one evaluation with a graph, and the decoded x0 that it predicts.

    Args:
        generator: The model.
        rows: Gives the prompts.
        key: Address of noise, stop and guidance.
        config: The schedule.
        decode: How to decode.
        purpose: Name of the draws; two rollouts of one name and key are the same.
    """
    stop = config.draw_stop(key, purpose)
    negative = _negative(generator, config, len(key))
    rollout = prompt_rollout(
        generator,
        rows.cond,
        key,
        num_steps=config.num_steps,
        stop=stop,
        spacing=config.spacing,
        guidance=draw_guidance(config.guidance, key, f"{purpose}/guidance"),
        grad_guidance=config.grad_guidance,
        negative=negative,
        purpose=purpose,
    )
    return _decoded(generator, rollout, stop, rows, config, negative, decode)


def picture_from_image(
    generator: Generator,
    rows: Rows,
    key: Key,
    config: RolloutConfig,
    decode: DecodeConfig,
    *,
    start: int,
    purpose: str,
) -> Picture:
    """As `picture_from_noise`, from real pictures diffused to the state with `start` steps to go."""
    stop = config.draw_stop(key, purpose, start=start)
    negative = _negative(generator, config, len(key))
    rollout = image_rollout(
        generator,
        rows.latents,
        rows.cond,
        key,
        num_steps=config.num_steps,
        start=start,
        stop=stop,
        spacing=config.spacing,
        guidance=draw_guidance(config.guidance, key, f"{purpose}/guidance"),
        grad_guidance=config.grad_guidance,
        negative=negative,
        purpose=purpose,
    )
    return _decoded(generator, rollout, stop, rows, config, negative, decode)


def need(name: str, given: Sequence[str], *, what: str, wanted_by: str) -> None:
    """Refuse a name that was not handed to a method.

    Raises:
        UserError: With the nearest name that was.
    """
    if name in given:
        return
    guess = nearest(name, given)
    hint = f"did you mean {guess!r}?" if guess else f"given: {', '.join(given) or 'none'}"
    raise UserError(f"{wanted_by} names the {what} {name!r}, which is not there; {hint}")


def need_source(name: str, sources: Mapping[str, Source], *, wanted_by: str) -> None:
    """Refuse data that was not handed to a method, or has no rows.

    Raises:
        UserError: See above.
    """
    need(name, list(sources), what="source", wanted_by=wanted_by)
    if len(sources[name]) == 0:
        raise UserError(f"the source {name!r} is empty")


def check_latents(name: str, source: Source, generator: Generator) -> None:
    """Refuse a source that gives no latents of the model: see `check_pictures`; encoded pictures will do too.

    Pictures in buckets of several shapes, which know their own, need not have the size that the model draws.

    Args:
        name: What the source is called.
        source: At least one row.
        generator: The model.

    Raises:
        UserError: See above.
    """
    first = source[0]
    if isinstance(first, EncodedSample):
        channels = generator.latent_shape[0]
        if first.mean.shape[0] != channels:
            raise UserError(
                f"latents of {name!r} have {first.mean.shape[0]} channels but the model's have {channels}; encode the "
                "pictures with this model"
            )
    elif getattr(first, "time_ids", None) is None:
        check_pictures(name, source, generator.image_size)


def check_pictures(name: str, source: Source, size: tuple[int, int]) -> None:
    """Refuse a source whose first row is no picture with a caption, or not of the model's size.

    Args:
        name: What the source is called.
        source: At least one row.
        size: (height, width) in pixels that the model draws.

    Raises:
        UserError: See above.
    """
    first = source[0]
    if not isinstance(first, Sample):
        raise UserError(f"the source {name!r} must hold pictures with captions, not {type(first).__name__}")
    found = tuple(first.image.shape[-2:])
    if found != tuple(size):
        raise UserError(
            f"pictures of {name!r} have {found[0]} x {found[1]} px but the model draws {size[0]} x {size[1]}; "
            f"set the data set's resolution to {size[0]}"
        )


def _negative(generator: Generator, config: RolloutConfig, batch_size: int) -> Conditioning | None:
    if not config.needs_negative:
        return None
    return generator.encode_negative(config.negative_prompt, batch_size, grad=True)


def _decoded(
    generator: Generator,
    rollout: Rollout,
    stop: int,
    rows: Rows,
    config: RolloutConfig,
    negative: Conditioning | None,
    decode: DecodeConfig,
) -> Picture:
    images = generator.decode(
        rollout.prediction.x0,
        grad=True,
        checkpoint=decode.checkpoint,
        slicing=decode.slicing,
        dtype=decode.dtype,
    )
    return Picture(images, rollout, stop, rows.prompts, rows.cond, config.negative_prompt, negative)
