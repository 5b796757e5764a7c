"""What a judgement looks like: a Feedback scores pictures, a Critic compares them with an annotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.data import Batch
from unifl.errors import UserError

Space = Literal["pixel", "latent"]
Score = Callable[..., Tensor]


@runtime_checkable
class Feedback(Protocol):
    """One number per picture, higher is better.

    Attributes:
        name: What losses and metrics are called after.
        space: What it reads: "pixel" (images in [0, 1]) or "latent" (scaled latents).
        differentiable: Whether gradients reach its input.
        needs: Subset of {"prompt"}; without it prompts are ignored.
        range: Smallest and largest possible score, or None when unbounded.
    """

    # properties, so that attributes which cannot be assigned (frozen dataclasses) satisfy the protocol too
    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def space(self) -> Space: ...  # noqa: D102

    @property
    def differentiable(self) -> bool: ...  # noqa: D102

    @property
    def needs(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def range(self) -> tuple[float, float] | None: ...  # noqa: D102

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores of pictures (or latents) that were made for these prompts."""
        ...


@runtime_checkable
class Critic(Protocol):
    """A dense loss of a picture against what is known about it, lower is better.

    Attributes:
        name: What losses and metrics are called after.
        needs: Subset of {"masks", "semantic", "image"}: what it reads from the batch.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def needs(self) -> frozenset[str]: ...  # noqa: D102

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Loss of each generated picture; `batch` holds the real ones and their annotations."""
        ...

    def pseudo(self, batch: Batch) -> Batch:
        """The batch with annotations that the critic itself reads off the real pictures."""
        ...


@dataclass(frozen=True, kw_only=True)
class FunctionFeedback:
    """A plain function as a Feedback; see `as_feedback`."""

    function: Score
    name: str
    space: Space = "pixel"
    differentiable: bool = True
    needs: frozenset[str] = frozenset({"prompt"})
    range: tuple[float, float] | None = None

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Tensor:
        """Scores of the function, (b,) if it is right (`require_gradient` looks); arrays and lists become tensors."""
        scores = self.function(images, prompts) if "prompt" in self.needs else self.function(images)
        return torch.as_tensor(scores, device=images.device)


class NetworkFeedback:
    """A frozen network `network(images, prompts) -> (b,)` as a differentiable Feedback.

    The network is put into eval mode and its parameters stop asking for gradients; gradients of the pixels
    are not touched.
    """

    space: Space = "pixel"
    differentiable: bool = True

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        needs: frozenset[str] = frozenset({"prompt"}),
        range: tuple[float, float] | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.needs = needs
        self.range = range

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Tensor:
        """Scores of the network, (b,) if it is right (`require_gradient` looks)."""
        return self.network(images, prompts) if "prompt" in self.needs else self.network(images)


def as_feedback(
    judge: Feedback | Score | Any,
    *,
    name: str | None = None,
    needs_prompt: bool = True,
    differentiable: bool = True,
    range: tuple[float, float] | None = None,
) -> Feedback:
    """Accept what people have: a Feedback passes unchanged, a network or a function is wrapped.

    Args:
        judge: Called with (images in [0, 1], prompts), or with the images alone; returns (b,) scores.
        name: Name of the result; by default that of the function or class.
        needs_prompt: Whether the prompts are passed on.
        differentiable: Set to False for a function that gives no gradient. A function that claims to be
            differentiable is tried out before training (`require_gradient`).
        range: Smallest and largest score.
    """
    if isinstance(judge, Feedback):
        return judge
    needs = frozenset({"prompt"}) if needs_prompt else frozenset()
    if isinstance(judge, nn.Module):
        return NetworkFeedback(judge, name=name or type(judge).__name__, needs=needs, range=range)
    if not callable(judge):
        raise UserError(f"{judge!r} cannot be called; a feedback is a function of (images, prompts)")
    return FunctionFeedback(
        function=judge,
        name=name or str(getattr(judge, "__name__", type(judge).__name__)),
        differentiable=differentiable,
        needs=needs,
        range=range,
    )


# methods that get along without a gradient, named by the error of `require_gradient`
GRADIENT_FREE = (
    "a latent proxy that follows it, preference optimisation and reinforcement learning (the likelihood methods), "
    "and search"
)


def require_gradient(
    feedback: Feedback,
    *,
    method: str,
    example: Float[Tensor, "b c h w"] | None = None,
    space: Space = "pixel",
) -> None:
    """Refuse a feedback through which no gradient reaches what the method shows it.

    Args:
        feedback: What is to be used.
        method: Name of the method that needs the gradient, for the message.
        example: Input of the size and on the device of training. When given, the feedback is tried out on
            it, so that a function which merely claims to be differentiable is found out.
        space: What the method shows it.

    Raises:
        UserError: A feedback on another space, no gradient, or scores that are not one per picture.
    """
    if feedback.space != space:
        raise UserError(
            f"{method} works in {space} space, but the feedback {feedback.name!r} reads {feedback.space} space; "
            f"use a feedback with space={space!r}"
        )
    refused = (
        f"{method} needs a gradient through the feedback {feedback.name!r}, which has none; "
        f"use a differentiable one here, or use this one with {GRADIENT_FREE}"
    )
    if not feedback.differentiable:
        raise UserError(refused)
    if example is None:
        return
    with torch.enable_grad():
        pixels = example.detach().clone().requires_grad_()
        scores = _tried(feedback, pixels, refused)
    if scores.shape != (len(pixels),):
        raise UserError(
            f"the feedback {feedback.name!r} returned shape {tuple(scores.shape)} for {len(pixels)} pictures; "
            "it must return one score per picture"
        )
    if not scores.requires_grad:
        raise UserError(refused)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(scores.sum(), pixels, allow_unused=True)
    if gradient is None:
        raise UserError(refused)


def require_critic_gradient(critic: Critic, batch: Batch) -> None:
    """Refuse a critic through which no gradient reaches the pixels, by trying it out.

    Args:
        critic: What is to be used.
        batch: A picture or more as in training, with the annotations that the critic needs.

    Raises:
        UserError: No gradient, or losses that are not one per picture.
    """
    with torch.enable_grad():
        pixels = batch.images.detach().clone().requires_grad_()
        losses = critic(pixels, batch)
        if losses.shape != (len(batch),):
            raise UserError(
                f"the critic {critic.name!r} returned shape {tuple(losses.shape)} for {len(batch)} pictures; "
                "it must return one loss per picture"
            )
        gradient = None
        if losses.requires_grad:
            (gradient,) = torch.autograd.grad(losses.sum(), pixels, allow_unused=True)
    if gradient is None:
        raise UserError(
            f"perceptual feedback needs a gradient through the critic {critic.name!r}, which has none; "
            "compute its loss from the pixels with torch alone, without detach() or no_grad()"
        )


def _tried(feedback: Feedback, pixels: Tensor, refused: str) -> Tensor:
    """Scores of pixels that require a gradient; whoever leaves torch on the way has none."""
    try:
        return feedback(pixels, ["a picture"] * len(pixels))
    except RuntimeError as error:
        if "requires grad" in str(error):  # what `.numpy()` says
            raise UserError(refused) from error
        raise
