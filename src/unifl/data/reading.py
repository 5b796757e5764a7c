"""How a run reads a source: in which order, and with how many of its captions."""

from __future__ import annotations

import warnings
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from unifl.data.batch import Batch
from unifl.data.buckets import BucketOrder
from unifl.data.captions import drop_captions
from unifl.data.encoded import EncodedBatch
from unifl.models.conditioning import Conditioning
from unifl.randomness import Key, row_order


class Reading:
    """A source with an order of its own, or captions that are left out now and then.

    Args:
        source: Rows by number.
        name: What the run calls it.
        seed: Seed of the run.
        buckets: The bucket of each row, where rows have several shapes; a batch then has rows of one.
        batch_size: Rows that go through the network together.
        caption_dropout: Share of rows that lose their caption.
        empty: The empty prompt, encoded, where rows keep embeddings.

    Raises:
        UserError: No bucket that fills a batch.
    """

    def __init__(
        self,
        source: Any,
        *,
        name: str,
        seed: int,
        buckets: Int64[Tensor, " n"] | None = None,
        batch_size: int = 1,
        caption_dropout: float = 0.0,
        empty: Conditioning | None = None,
    ) -> None:
        self.source = source
        self._purpose, self._seed = f"rows/{name}", seed
        self._dropout, self._empty = caption_dropout, empty
        self._order: BucketOrder | None = None
        if buckets is not None:
            self._order = BucketOrder(buckets, batch_size, seed=seed, purpose=self._purpose)
            if self._order.never_read:
                warnings.warn(
                    f"{self._order.never_read} of {len(buckets)} rows of {name!r} are never read: their buckets hold "
                    f"fewer than the {batch_size} rows of a batch",
                    stacklevel=2,
                )

    def __len__(self) -> int:
        """All rows of the source."""
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        """A row of the source."""
        return self.source[index]

    def row(self, index: int) -> int:
        """The row of global sample `index`, counted from the start of the run."""
        if self._order is not None:
            return self._order.row(index)
        return row_order(len(self.source), self._seed, self._purpose, index)

    def with_dropout(self, batch: Batch | EncodedBatch, key: Key) -> Batch | EncodedBatch:
        """The rows of a micro-batch, some without their caption."""
        if self._dropout == 0:
            return batch
        if isinstance(batch, EncodedBatch):
            return batch.drop_captions(self._dropout, key, empty=self._empty)
        return batch.with_prompts(drop_captions(batch.prompts, self._dropout, key))
