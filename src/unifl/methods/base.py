"""What a method offers to the training loop: named losses per update, and nothing about how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from unifl.randomness import Key


@runtime_checkable
class Source(Protocol):
    """Map-style data: anything with a length and rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass
class MicroBatch:
    """The rows that one process sees at once, and the address of their random draws.

    Attributes:
        key: Key of the draws; `key.indices` are the global sample indices of the rows, so `len(key)` is the
            number of rows b.
        data: For each of the method's sources, its b rows: a list, or a `data.Batch` where the source yields
            annotated images.
        scratch: Empty at the start of a training step, and kept from one update to the next within it. A
            discriminator's update finds there the pictures that the student's update made. Put detached
            tensors there: the graph of the earlier update is gone, and its weights have moved.
    """

    key: Key
    data: dict[str, Any]
    scratch: dict[str, Any] = field(default_factory=dict)


@dataclass
class StepOutput:
    """What a method found on one micro-batch.

    Attributes:
        losses: Scalars with a graph, already weighted; their sum is minimised. Each is the mean over the
            micro-batch. An empty dictionary leaves this update out of the present training step.
        metrics: Numbers to record. Each must be finite: a reward that is NaN stops the run. A metric that
            does not apply is left out. Names of metrics are unique over the updates of a method.
        previews: Pictures (n, 3, h, w) in [0, 1], detached, saved now and then under their name.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
    previews: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """A way of turning judgement into gradients.

    Attributes:
        config: The method's dataclass config.
        generator: The model in training (`unifl.models.generator.Generator`).
        updates: Names of the optimisers in the order of their use inside one training step, for example
            `("student", "discriminator")`. The loop knows nothing else about them.
        parameters: What each update trains. No parameter belongs to two updates.
        modules: Further trainable modules (a discriminator), which checkpoints hold in full.
        sources: Map-style data by name: a list of prompts, annotated images, anything with `len` and `[i]`.
        roles: Roles of the generator that the method asks for beside the student.
    """

    config: Any
    generator: Any
    updates: tuple[str, ...]
    parameters: Mapping[str, list[nn.Parameter]]
    modules: Mapping[str, nn.Module]
    sources: Mapping[str, Source]
    roles: tuple[str, ...]

    def step(self, update: str, batch: MicroBatch) -> StepOutput:
        """Losses of one update on one micro-batch; called with gradients on, once per micro-batch.

        A feedback that may fail is asked in the first update, before running statistics change: the state after the
        step before is then still whole, and the loop writes it when a `FeedbackFailed` comes.
        """
        ...

    def evaluations(self, batch_size: int) -> dict[str, float]:
        """Expected network evaluations of all updates of one training step on one micro-batch.

        Args:
            batch_size: Rows of the micro-batch. Several micro-batches or processes cost that many times as much.

        Returns:
            For each kind of evaluation ("unet forward", "unet forward+backward", "vae decode", ...) how many
            samples pass through that network; a guided evaluation counts as two. Where the number is drawn at
            random, the exact mean.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Running statistics: tensors, numbers and strings in dictionaries, lists and tuples."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        ...
