"""How many samples pass through each network in a training step: the sum behind `Method.evaluations`."""

from __future__ import annotations

from collections.abc import Sequence

from unifl.methods.anchors import AnchorConfig
from unifl.sampling import RolloutConfig, halves


class Evaluations:
    """Adds up evaluations of reward-gradient methods.

    Encoded prompts are cached while no text encoder trains, so they do not count then; those of the reference never do.
    Rows of a source are encoded once per step, however many terms use them.

    Args:
        batch_size: Rows b of a training step.
        trains_text: Whether a text encoder trains.

    Attributes:
        share: Of the training steps in which what is added next happens.
        per_step: The sum so far.
    """

    def __init__(self, batch_size: int, *, trains_text: bool) -> None:
        self.batch_size = batch_size
        self.share = 1.0
        self.per_step: dict[str, float] = {}
        self._trains_text = trains_text
        self._encoded: set[str] = set()

    def add(self, kind: str, per_picture: float | int = 1) -> None:
        """Add `per_picture` evaluations for each row, in `share` of the training steps."""
        mean = per_picture * self.share
        if mean:
            self.per_step[kind] = self.per_step.get(kind, 0.0) + mean * self.batch_size

    def prompts(self, source: str) -> None:
        """Encode the prompts of a source."""
        if self._trains_text and f"prompts of {source}" not in self._encoded:
            self._encoded.add(f"prompts of {source}")
            self.add("text forward+backward")

    def latents(self, source: str) -> None:
        """Encode the pictures of a source."""
        if self.share and f"latents of {source}" not in self._encoded:
            self._encoded.add(f"latents of {source}")
            self.add("vae encode")

    def rollout(self, config: RolloutConfig, source: str, *, start: int | None = None) -> None:
        """A rollout with its decode; `start` is given for one from real pictures."""
        self.prompts(source)
        if start is not None:
            self.latents(source)
        if self._trains_text and config.needs_negative:
            self.add("text forward+backward", 1 / self.batch_size)  # one negative prompt for all rows
        without, graded = config.evaluations(start=start)
        self.add("unet forward", without)
        self.add("unet forward+backward", graded)
        self.add("vae decode forward+backward")

    def pictures_only(self, config: RolloutConfig, *, start: int | None = None) -> None:
        """A rollout of which nothing carries a graph, with its decode."""
        if self._trains_text:
            self.add("text forward", 1 + config.needs_negative / self.batch_size)
        self.add("unet forward", sum(config.evaluations(start=start)))
        self.add("vae decode")

    def anchors(self, config: AnchorConfig, rollouts: Sequence[RolloutConfig]) -> None:
        """The anchors of a method that makes these rollouts."""
        if config.denoising_weight > 0:
            self.prompts(config.source)
            self.latents(config.source)
            self.add("unet forward+backward")
        if config.distance_weight > 0:
            for rollout in rollouts:
                self.add("unet forward", halves(rollout.graded_guidance))
