"""A judge behind an HTTP interface of the kind that OpenAI has, as vLLM, SGLang and llama.cpp offer it.

POST {base}/chat/completions   {"model", "messages": [{"role": "user", "content": [picture, question]}], ...}
"""

from __future__ import annotations

import base64
import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image

from unifl.errors import UserError
from unifl.feedback.scorers.prompts import require_prompts
from unifl.feedback.scorers.questions import (
    ANSWERS,
    RATES,
    SHOWS,
    Malformed,
    asked,
    choice,
    preferences,
    rating,
)

_Said = TypeVar("_Said")
_AT_ONCE = 8
_ASKED = {"rates": RATES, "shows": SHOWS, "answers": ANSWERS}
_WRONG = {
    400: "the service does not take this question; see that its model reads pictures",
    401: "the service refuses the key; set {variable} to a valid one",
    403: "the service refuses the key; set {variable} to a valid one",
    404: "there is nothing of that name; check the address (it often ends in /v1) and the model",
    413: "the pictures are too large for the service; scale them down",
    422: "the service does not take this question; see that its model reads pictures",
}
"""What asking again does not help against."""


class NoAnswer(RuntimeError):
    """The service gave no usable answer, however often it was asked."""


class ChatJudge:
    """Scores pictures by asking a service, one question per picture.

    Args:
        model: What the service calls the model.
        base: Its address, as `http://localhost:8000/v1`.
        asks: rates: for a rating in words from 1 to 5. shows: for the probability of Yes, which needs a service that
            gives log-probabilities. answers: for the same where prompts are questions themselves.
        question: In place of ours, with `{prompt}`.
        key_variable: The environment variable with the key; without one none is sent.
        timeout: Seconds that one answer may take.
        tries: How often a question is asked before it is given up.
        wait: Seconds before a question is asked again, doubled each time.

    Raises:
        UserError: An address that is none, or a question without its place.
    """

    def __init__(
        self,
        model: str,
        base: str,
        *,
        asks: str = "rates",
        question: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: int | float = 120.0,
        tries: int = 4,
        wait: int | float = 1.0,
    ) -> None:
        if not base.startswith(("http://", "https://")):
            raise UserError(
                f"the address of the judge is {base!r}; write it as http://localhost:8000/v1, as `base`"
            )
        if not model:
            raise UserError("a judge behind HTTP needs the name of its model; give it as `weights`")
        if asks not in _ASKED:
            raise UserError(f"asks is {asks!r}; choose rates, shows or answers")
        self.question = question or _ASKED[asks]
        if "{prompt}" not in self.question:
            raise UserError("the question has no place for the prompt; write {prompt} in it")
        self.model, self.base, self.asks = model, base.rstrip("/"), asks
        self.key_variable, self.timeout, self.tries, self.wait = key_variable, timeout, tries, wait

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """One score per picture, in [1, 5] or [0, 1].

        Raises:
            NoAnswer: A question that got no usable answer after all tries.
            UserError: What asking again does not help against.
        """
        require_prompts(prompts, len(pictures))
        questions = [asked(self.question, prompt) for prompt in prompts]
        groups = [[picture] for picture in pictures]
        if self.asks != "rates":
            more = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
            return self._all(groups, questions, more, _yes)
        return self._all(groups, questions, {"max_tokens": 512}, lambda found: rating(_words(found)))

    def prefer(
        self, first: Sequence[Image.Image], second: Sequence[Image.Image], prompts: Sequence[str]
    ) -> list[float]:
        """Which picture of each pair is preferred: 1 the first, 0 the second, 0.5 neither or not in both orders.

        Raises:
            NoAnswer: See above.
            UserError: See above.
        """
        require_prompts(prompts, len(first))

        def answers(groups: Sequence[Sequence[Any]], questions: Sequence[str]) -> list[str]:
            return self._all(groups, questions, {"max_tokens": 16}, _choosing)

        return preferences(answers, first, second, prompts)

    def _all(
        self,
        groups: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        more: Mapping[str, Any],
        read: Callable[[Any], _Said],
    ) -> list[_Said]:
        """What was read in each answer, in the order of the questions."""
        import httpx2

        key = os.environ.get(self.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx2.Client(timeout=self.timeout, headers=headers) as client,
            ThreadPoolExecutor(_AT_ONCE) as pool,
        ):
            work = [
                pool.submit(self._one, client, group, question, more, read)
                for group, question in zip(groups, questions, strict=True)
            ]
            try:
                return [answer.result() for answer in work]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(
        self,
        client: Any,
        group: Sequence[Image.Image],
        question: str,
        more: Mapping[str, Any],
        read: Callable[[Any], _Said],
    ) -> _Said:
        content = [
            *({"type": "image_url", "image_url": {"url": _inline(picture)}} for picture in group),
            {"type": "text", "text": question},
        ]
        last = ""
        for turn in range(self.tries):
            if turn:
                time.sleep(self.wait * 2 ** (turn - 1))
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0.0 if turn == 0 else 0.7,  # the likeliest answer would be malformed again
                **more,
            }
            try:
                return read(self._posted(client, body))
            except (Malformed, NoAnswer) as error:
                last = str(error)
        raise NoAnswer(f"{self.model} at {self.base} after {self.tries} tries: {last}")

    def _posted(self, client: Any, body: Mapping[str, Any]) -> Any:
        """The first choice of the service's answer."""
        import httpx2

        try:
            answer = client.post(f"{self.base}/chat/completions", json=body)
        except httpx2.InvalidURL as error:
            raise UserError(f"the address of the judge, {self.base!r}, is none ({error})") from error
        except httpx2.HTTPError as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        if answer.status_code in _WRONG:
            why = _WRONG[answer.status_code].format(variable=self.key_variable)
            raise UserError(
                f"{self.base} answers {answer.status_code} for {self.model} ({answer.text[:200]!r}): {why}"
            )
        if answer.status_code != 200:
            raise NoAnswer(f"answer {answer.status_code}: {answer.text[:200]!r}")
        try:
            return answer.json()["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise NoAnswer(f"an answer without choices: {answer.text[:200]!r}") from error


def _inline(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")  # without losses, which a judge would see
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _words(found: Any) -> str:
    try:
        text = found["message"]["content"]
    except (KeyError, TypeError) as error:
        raise Malformed("an answer without words") from error
    if not isinstance(text, str):
        raise Malformed(f"an answer of {type(text).__name__}")
    return text


def _choosing(found: Any) -> str:
    text = _words(found)
    choice(text)  # raises where it is none, so that it is asked again
    return text


def _yes(found: Any) -> float:
    """The probability of Yes as the first token; 0 where it is not among those that the service lists."""
    try:
        likely = found["logprobs"]["content"][0]["top_logprobs"]
        spread = {one["token"].strip(): float(one["logprob"]) for one in reversed(likely)}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(
            "an answer without log-probabilities; use a service that gives them, or asks=rates"
        ) from error
    return math.exp(min(spread["Yes"], 0.0)) if "Yes" in spread else 0.0
