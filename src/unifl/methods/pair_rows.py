"""Rows of preference data as methods use them: winners and then losers in one batch, each prompt encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unifl.data.captions import dropped_captions
from unifl.data.encoded import EncodedBatch, EncodedSample, collate_encoded
from unifl.data.judged import EncodedJudged, Judged
from unifl.data.pairs import EncodedPair, Pair
from unifl.data.users import UserEmbeddings, drop_users
from unifl.errors import UserError
from unifl.methods.base import Source
from unifl.methods.pair_users import embeddings_of
from unifl.models.conditioning import Conditioning
from unifl.models.generator import Generator
from unifl.randomness import Key


class PairRows:
    """b pairs.

    Args:
        generator: The model.
        rows: Pairs of pictures, or of encoded ones.
        key: Address of the draws.
        caption_dropout: Probability that a pair loses its caption.

    Attributes:
        tie: Pairs that nobody won (b,).
        strength: Weight of each pair's label (b,).
    """

    def __init__(
        self,
        generator: Generator,
        rows: Sequence[Pair] | Sequence[EncodedPair],
        key: Key,
        *,
        caption_dropout: float = 0.0,
    ) -> None:
        self._generator, self._rows, self._key = generator, rows, key
        self._dropped = dropped_captions(key, caption_dropout)
        # once: to tell, diffusers visits every module of the denoiser
        self._device = device = generator.device
        self.tie: Bool[Tensor, " b"] = torch.tensor([row.tie for row in rows], device=device)
        self.strength: Float[Tensor, " b"] = torch.tensor([row.strength for row in rows], device=device)

    def latents(self, *, losers: bool = True) -> Float[Tensor, "n c h w"]:
        """Winners and then losers (2b), or winners alone (b), drawn from the posterior with shared noise."""
        sides = ("win", "lose") if losers else ("win",)
        items = [getattr(row, side) for side in sides for row in self._rows]
        return _drawn(self._generator, items, self._key, self._device)

    def cond(
        self, *, copies: int, users: UserEmbeddings | None = None, user_dropout: float = 0.0
    ) -> Conditioning:
        """Encoded prompts, as many times in a row as there are pictures of each, with the users who chose.

        Args:
            copies: Pictures of each prompt.
            users: Embeddings; None where the model is not told for whom it draws.
            user_dropout: Probability that a pair loses its user.

        Raises:
            UserError: A pair without a user, or a user without an embedding; with the pair's prompt.
        """
        prompts = [row.prompt for row in self._rows]
        kept = [row.win for row in self._rows if isinstance(row, EncodedPair)]
        cond = _encoded_prompts(self._generator, prompts, kept, self._dropped, self._device)
        if users is not None:
            told = embeddings_of(self._rows, users).to(self._device)
            cond = drop_users(replace(cond, user=told), user_dropout, self._key)
        return cond.repeat(copies)

    def mask(self, *, losers: bool = True) -> Float[Tensor, "n 1 h w"] | None:
        """Weight of each place of the latents, winners first; None where no pair has a region."""
        masks = [row.win_mask for row in self._rows]
        masks += [row.lose_mask for row in self._rows] if losers else []
        if all(mask is None for mask in masks):
            return None
        size = self._generator.latent_shape[1:]
        scaled = [_at_latents(mask, size) for mask in masks]
        return torch.stack(scaled)[:, None].to(self._device)


class JudgedRows:
    """b pictures with a score each, encoded or not.

    Attributes:
        score: (b,).
    """

    def __init__(
        self, generator: Generator, rows: Sequence[Judged] | Sequence[EncodedJudged], key: Key
    ) -> None:
        self._generator, self._rows, self._key = generator, rows, key
        self._device = generator.device
        self.score: Float[Tensor, " b"] = torch.tensor([row.score for row in rows], device=self._device)

    def latents(self) -> Float[Tensor, "b c h w"]:
        """Drawn from the posterior."""
        items = [row.sample if isinstance(row, EncodedJudged) else row.image for row in self._rows]
        return _drawn(self._generator, items, self._key, self._device)

    def cond(self) -> Conditioning:
        """Encoded prompts."""
        prompts = [row.sample.prompt if isinstance(row, EncodedJudged) else row.prompt for row in self._rows]
        kept = [row.sample for row in self._rows if isinstance(row, EncodedJudged)]
        dropped = torch.zeros(len(prompts), dtype=torch.bool)
        return _encoded_prompts(self._generator, prompts, kept, dropped, self._device)


def check_judged(
    name: str, source: Source, generator: Generator, kinds: tuple[type, type], *, what: str
) -> None:
    """Refuse a source whose first row is not of these kinds, or of another size than the model's.

    Args:
        name: What the source is called.
        source: At least one row.
        generator: The model.
        kinds: Of pictures, and of encoded ones.
        what: What is wanted, in words.

    Raises:
        UserError: See above.
    """
    first = source[0]
    if not isinstance(first, kinds):
        raise UserError(f"the source {name!r} must hold {what}, not {type(first).__name__}")
    item = getattr(first, "win", None)
    if item is None:
        item = getattr(first, "sample", None)
    if item is None:
        item = getattr(first, "image", None)
    if isinstance(item, EncodedSample):
        if tuple(item.mean.shape) != tuple(generator.latent_shape):
            raise UserError(
                f"latents of {name!r} are {tuple(item.mean.shape)} but the model's are "
                f"{tuple(generator.latent_shape)}; encode the pictures with this model at its resolution"
            )
    elif isinstance(item, Tensor) and tuple(item.shape[-2:]) != tuple(generator.image_size):
        found, wanted = tuple(item.shape[-2:]), tuple(generator.image_size)
        raise UserError(
            f"pictures of {name!r} have {found[0]} x {found[1]} px but the model draws {wanted[0]} x {wanted[1]}; "
            f"set the data set's resolution to {wanted[0]}"
        )


def _drawn(
    generator: Generator, items: Sequence[Tensor | EncodedSample], key: Key, device: torch.device
) -> Float[Tensor, "n c h w"]:
    """Latents of n pictures; what stands in one row of the key shares its noise."""
    if isinstance(items[0], EncodedSample):
        batch: EncodedBatch = collate_encoded([item for item in items if isinstance(item, EncodedSample)])
        mean, std = batch.mean.to(device), batch.std.to(device)
    else:
        pictures = torch.stack([item for item in items if isinstance(item, Tensor)])
        mean, std = generator.posterior(pictures.to(device))
    noise = key.normal("posterior", mean.shape[1:], device=mean.device)
    return mean + std * noise.repeat(len(items) // len(key), 1, 1, 1)


def _encoded_prompts(
    generator: Generator,
    prompts: list[str],
    kept: list[EncodedSample],
    dropped: Bool[Tensor, " b"],
    device: torch.device,
) -> Conditioning:
    if not kept or kept[0].embeds is None:
        shown = ["" if gone else prompt for prompt, gone in zip(prompts, dropped.tolist(), strict=True)]
        cond = generator.encode_prompts(shown)
    else:
        batch = collate_encoded(kept).to(device)
        if dropped.any():
            batch = _without_captions(batch, dropped, generator)
        assert batch.cond is not None
        cond = batch.cond
    if not generator.is_xl:
        return Conditioning(cond.embeds, cond.pooled)
    known = [sample.time_ids for sample in kept if sample.time_ids is not None]
    ids = torch.stack(known).to(device) if known else generator.time_ids(len(prompts))
    return replace(cond, time_ids=ids)


def _without_captions(batch: EncodedBatch, dropped: Bool[Tensor, " b"], generator: Generator) -> EncodedBatch:
    empty = generator.encode_prompts([""])
    assert batch.embeds is not None
    gone = dropped.to(batch.embeds.device)
    embeds = torch.where(gone[:, None, None], empty.embeds, batch.embeds)
    pooled = batch.pooled
    if pooled is not None and empty.pooled is not None:
        pooled = torch.where(gone[:, None], empty.pooled, pooled)
    return replace(batch, embeds=embeds, pooled=pooled)


def _at_latents(mask: Float[Tensor, "h w"] | None, size: tuple[int, int]) -> Float[Tensor, "hh ww"]:
    """A region in px as weights of latent places; everything where there is none."""
    if mask is None:
        return torch.ones(size)
    return F.adaptive_avg_pool2d(mask[None, None].float(), size)[0, 0]
