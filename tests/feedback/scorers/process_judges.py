"""Judges for the tests of `WorkerProcess`; the library, which takes seconds to load, is left out where it can be."""

from __future__ import annotations

import os
import time


def mean(*, scale):
    """Scale times the mean byte; prompts make it misbehave."""

    def judge(pictures, prompts):
        print("a library that talks")
        for prompt in prompts:
            if prompt == "die":
                os._exit(3)
            if prompt == "sleep":
                time.sleep(60)
            if prompt == "raise":
                raise ValueError("nothing to see")
            if prompt == "mistake":
                from unifl.errors import UserError

                raise UserError("the prompt is a mistake; write another")
        scores = [scale * float(picture.mean()) for picture in pictures]
        if "few" in prompts:
            return scores[:-1]
        return [
            float("nan") if prompt == "nan" else score for score, prompt in zip(scores, prompts, strict=True)
        ]

    return judge


def pid():
    """The number of its process as the score."""
    return lambda pictures, prompts: [os.getpid()] * len(pictures)


def broken(*, how):
    """Cannot be built."""
    if how == "user":
        from unifl.errors import UserError

        raise UserError("there are no weights; give some")
    if how == "die":
        os._exit(4)
    if how == "slow":
        time.sleep(60)
    raise RuntimeError("out of luck")
