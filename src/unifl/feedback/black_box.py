"""Experts of which nothing is known but their answers: functions, other processes, services.

They give no gradient. A latent proxy (`unifl.feedback.latent_proxy`) learns to order latents as they do.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unifl.errors import FeedbackFailed, UserError
from unifl.feedback.base import Feedback, Space

Takes = Literal["tensor", "numpy", "pil"]


class BlackBoxFeedback:
    """A Python function or a remote scorer as a Feedback without gradient.

    Each call may take `timeout` seconds; it is repeated when it takes longer or raises, and after the last attempt the
    error is a `FeedbackFailed`, at which a training run writes a checkpoint and stops. A call that ran out of time is
    left alone and goes on in its thread, so the function has to bear a second call beside it.

    A mistake (`UserError`) is not tried again. Before the first answer it leaves as it is; after it, in the middle of a
    run, it is a `FeedbackFailed` too, so that the run is saved.

    Args:
        function: Called with (pictures, prompts), or the pictures alone; returns one finite number per picture, higher
            is better, as a list, an array or a tensor.
        name: What losses and metrics are called after; by default the name of the function.
        takes: What pictures are handed over as: one float tensor (b, 3, h, w) in [0, 1] on the device of training, a
            list of b uint8 arrays (h, w, 3), or a list of b PIL pictures.
        needs_prompt: Whether the prompts are passed on.
        timeout: Seconds that one call may take; None waits for ever, in the caller's own thread.
        retries: Further attempts after the first.
        backoff: Seconds before the first further attempt, doubled before each one after it.
        range: Smallest and largest score.

    Raises:
        UserError: Something that cannot be called, or settings out of range.
    """

    space: Space = "pixel"
    differentiable: bool = False

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        takes: Takes = "tensor",
        needs_prompt: bool = True,
        timeout: int | float | None = 60.0,
        retries: int = 2,
        backoff: int | float = 1.0,
        range: tuple[float, float] | None = None,
    ) -> None:
        if not callable(function):
            raise UserError(
                f"{function!r} cannot be called; a black box is a function of (pictures, prompts)"
            )
        if takes not in ("tensor", "numpy", "pil"):
            raise UserError(f"takes is {takes!r}; choose tensor, numpy or pil")
        if (timeout is not None and not timeout > 0) or retries < 0 or backoff < 0:
            raise UserError(
                f"timeout={timeout}, retries={retries}, backoff={backoff} of a black box: the first must be above 0, "
                "the others 0 or more"
            )
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.needs = frozenset({"prompt"}) if needs_prompt else frozenset()
        self.range = range
        self.takes, self.timeout, self.retries, self.backoff = takes, timeout, retries, backoff
        self._has_answered = False

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores on the device of the pictures.

        Raises:
            FeedbackFailed: No answer after all attempts, one that is not one finite number per picture, or a mistake
                after an answer.
            UserError: As the function raised it, before it has answered anything.
        """
        pictures = _handed_over(images.detach(), self.takes)
        arguments = (pictures, list(prompts)) if "prompt" in self.needs else (pictures,)
        failure: Exception | None = None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                answer = self._attempt(arguments)
                break
            except UserError as error:
                if self._has_answered:
                    raise FeedbackFailed(
                        f"the feedback {self.name!r} refuses what it is asked: {error}"
                    ) from error
                raise
            except Exception as error:
                failure = error
        else:
            attempts = "1 attempt" if self.retries == 0 else f"{self.retries + 1} attempts"
            raise FeedbackFailed(
                f"the feedback {self.name!r} gave no answer after {attempts} ({type(failure).__name__}: {failure}); "
                "see that it runs and can be reached, or raise its timeout or retries"
            ) from failure
        found = require_scores(answer, images, name=self.name)
        self._has_answered = True
        return found

    def _attempt(self, arguments: tuple[Any, ...]) -> Any:
        """One call, for as long as it may take."""
        if self.timeout is None:
            return self._ask(arguments)
        answers: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                answers.append(self._ask(arguments))
            except BaseException as error:
                errors.append(error)

        # a daemon, so that a call which never ends does not keep the interpreter from ending
        worker = threading.Thread(target=work, name=f"feedback {self.name}", daemon=True)
        worker.start()
        worker.join(self.timeout)
        if errors:
            raise errors[0]
        if not answers:
            raise TimeoutError(f"no answer within {self.timeout:g} s")
        return answers[0]

    def _ask(self, arguments: tuple[Any, ...]) -> Any:
        with torch.no_grad():  # a thread of its own has gradients on
            return self.function(*arguments)


class JpegSize:
    """How small, or how large, a picture is as a JPEG, in kilobytes (1,000 bytes); small pictures are smooth ones.

    No gradient passes through a file, which makes this a first test of what learns from scores alone (used so by DDPO,
    Black et al., arXiv 2305.13301). Pillow's other settings stay as they are (4:2:0 chroma).

    Args:
        quality: Of the JPEG, 1 to 95. DDPO's code has 95, and so have the scorers jpeg_small and jpeg_large; the
            results of this package on proxies (docs/results/rg-lcd.md) were measured with 90.
        name: What losses and metrics are called after.
        prefer: "small": scores are minus the kilobytes; "large": the kilobytes.

    Raises:
        UserError: Another quality or preference.
    """

    space: Space = "pixel"
    differentiable: bool = False
    needs: frozenset[str] = frozenset()
    range: tuple[float, float] | None = None

    def __init__(
        self, quality: int = 90, *, name: str = "jpeg_size", prefer: Literal["small", "large"] = "small"
    ) -> None:
        if not 1 <= quality <= 95:
            raise UserError(f"the quality of a JPEG is {quality}; choose 1 to 95")
        if prefer not in ("small", "large"):
            raise UserError(f"prefer is {prefer!r}; choose small or large")
        self.quality = quality
        self.name = name
        self._sign = 1 if prefer == "large" else -1

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Kilobytes of each picture, or minus them; prompts are ignored."""
        sizes = []
        for picture in _handed_over(images.detach(), "pil"):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=self.quality)
            sizes.append(self._sign * len(file.getvalue()) / 1000)
        return torch.tensor(sizes, device=images.device)


def require_scores(answer: Any, images: Float[Tensor, "b c h w"], *, name: str) -> Float[Tensor, " b"]:
    """What a feedback answered as float32 scores, one per picture.

    Args:
        answer: A tensor, an array or a list.
        images: What it was asked about.
        name: Of the feedback, for the message.

    Raises:
        FeedbackFailed: It is not one finite number per picture.
    """
    wanted = f"it must return one finite number per picture, ({len(images)},)"
    try:
        scores = torch.as_tensor(answer, dtype=torch.float32).detach().to(images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FeedbackFailed(
            f"the feedback {name!r} returned {type(answer).__name__}, which are no numbers ({error}); {wanted}"
        ) from error
    if scores.shape != (len(images),):
        raise FeedbackFailed(
            f"the feedback {name!r} returned shape {tuple(scores.shape)} for {len(images)} pictures; {wanted}"
        )
    if not bool(scores.isfinite().all()):
        bad = scores[~scores.isfinite()][0]
        raise FeedbackFailed(f"the feedback {name!r} returned {float(bad)}; {wanted}")
    return scores


@torch.no_grad()
def try_feedback(feedback: Feedback, example: Float[Tensor, "b c h w"]) -> None:
    """Ask a feedback once before training, so that a mistake shows before any long work.

    Args:
        feedback: What is to be used without its gradient.
        example: Pictures or latents of the size and on the device of training; two show a score that is missing.

    Raises:
        FeedbackFailed: No answer, or one that is not one finite number per picture.
    """
    require_scores(feedback(example, ["a picture"] * len(example)), example, name=feedback.name)


def _handed_over(images: Float[Tensor, "b 3 h w"], takes: Takes) -> Any:
    if takes == "tensor":
        return images.float()
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    arrays = [np.ascontiguousarray(picture) for picture in pixels]
    return arrays if takes == "numpy" else [Image.fromarray(picture) for picture in arrays]
