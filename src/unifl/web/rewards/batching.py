"""Questions of several clients as batches for one scorer, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.feedback import Feedback
from unifl.feedback.black_box import require_scores
from unifl.feedback.wire import Question, as_numbers


class Refused(RuntimeError):
    """No place for a question now: the queue is full, or the server stops. Asking later is right."""


class Batcher:
    """A bounded queue before a scorer.

    Questions about pictures of one size are put together as long as they fit whole into a batch; the oldest question is
    always among them. A question of more pictures than a batch is scored by itself, a batch after the other. The scorer
    therefore sees what it would see in process, unless questions of others are beside it: then sums of a network may
    differ in their last bit.

    Where a batch of several questions fails, each of them is asked by itself, so that a question gets its own error and
    never that of another. A question whose client has gone leaves the queue; one that is being scored goes no further
    than the batch that the scorer is at.

    Args:
        scorer: Reads pixels.
        batch_size: Pictures at once.
        wait: Seconds for which an idle scorer waits to fill a batch, only while further questions are being received.
        queue: Questions that may be inside at once, being received and scored ones included.
        device: Where pictures are shown to the scorer.
    """

    def __init__(
        self,
        scorer: Feedback,
        *,
        batch_size: int,
        wait: float,
        queue: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.scorer = scorer
        self.batch_size, self.wait, self.queue, self.device = batch_size, wait, queue, device
        self.inside = 0
        self._arriving = 0
        self._waiting: deque[_Waiting] = deque()
        self._closing = False
        self._changed = threading.Condition()
        # a daemon, so that a scorer which hangs does not keep the process from ending
        self._worker = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._worker.start()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for one question, taken before the question is received and held until it is answered.

        Raises:
            Refused: There is none.
        """
        with self._changed:
            if self._closing:
                raise Refused("the server is stopping")
            if self.inside >= self.queue:
                raise Refused(f"{self.inside} questions are waiting, and more are not taken")
            self.inside += 1
            self._arriving += 1
        place = Place(self)
        try:
            yield place
        finally:
            with self._changed:
                self.inside -= 1
                self._arriving -= place.question is None
                if place.question is not None:
                    place.question.gone = True
                    if place.question in self._waiting:
                        self._waiting.remove(place.question)
                self._changed.notify()

    def close(self) -> None:
        """Refuse what waits and what comes; the batch that is being scored will be answered."""
        with self._changed:
            self._closing = True
            refused, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for one in refused:
            if one.answer.set_running_or_notify_cancel():
                one.answer.set_exception(Refused("the server is stopping"))

    def put(self, one: _Waiting) -> None:
        """Queue what arrived at a place."""
        with self._changed:
            self._arriving -= 1
            if self._closing:
                raise Refused("the server is stopping")
            self._waiting.append(one)
            self._changed.notify()

    # --- the thread of the scorer ------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            # those whose client has gone are left out
            if there := [one for one in batch if not one.gone and one.answer.set_running_or_notify_cancel()]:
                self._answer(there)

    def _next(self) -> list[_Waiting] | None:
        """The next batch; None when the server stops."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            until = time.monotonic() + self.wait
            while self._arriving and not self._closing:
                left = until - time.monotonic()
                if left <= 0 or sum(map(len, self._fitting())) >= self.batch_size:
                    break
                self._changed.wait(left)
            batch = self._fitting()
            for one in batch:
                self._waiting.remove(one)
            return batch

    def _fitting(self) -> list[_Waiting]:
        """The oldest question, and those after it that fit beside it."""
        chosen: list[_Waiting] = []
        room = self.batch_size
        for one in self._waiting:
            if not chosen or (one.size == chosen[0].size and len(one) <= room):
                chosen.append(one)
                room -= len(one)
        return chosen

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            scores = self._scores(batch)
        except BaseException as error:  # also what a scorer may raise to end the process
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for one in batch:
                self._answer([one])
            return
        start = 0
        for one in batch:
            one.answer.set_result(scores[start : start + len(one)])
            start += len(one)

    def _scores(self, batch: Sequence[_Waiting]) -> list[float]:
        images = torch.cat([as_numbers(one.question.images) for one in batch])
        prompts = [prompt for one in batch for prompt in one.question.prompts]
        found: list[float] = []
        for start in range(0, len(images), self.batch_size):
            if all(one.gone for one in batch):
                raise Refused("nobody waits for the answer")
            rows = slice(start, start + self.batch_size)
            found += self._asked(images[rows].to(self.device), prompts[rows]).tolist()
        return found

    @torch.no_grad()
    def _asked(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return require_scores(self.scorer(images, prompts), images, name=self.scorer.name)


class Place:
    """Of one question; `put` queues it."""

    def __init__(self, batcher: Batcher) -> None:
        self.question: _Waiting | None = None
        self._batcher = batcher

    def put(self, question: Question) -> Future[list[float]]:
        """The future answer, which has a score per picture or the error of the scorer.

        Raises:
            Refused: The server has begun to stop.
        """
        self.question = _Waiting(question)
        self._batcher.put(self.question)
        return self.question.answer


class _Waiting:
    """A question in the queue, or before the scorer."""

    def __init__(self, question: Question) -> None:
        self.gone = False  # its place was left
        self.question = question
        self.size = tuple(question.images.shape[2:])
        self.answer: Future[list[float]] = Future()

    def __len__(self) -> int:
        return len(self.question.images)
