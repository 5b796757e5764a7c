"""Scorers, GenEval and features in place of a judge: what can be measured on any pictures of any prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.evaluation.geneval import GenEval
from unifl.evaluation.judge import JUDGE_KEYS
from unifl.feedback import Feedback
from unifl.feedback.black_box import require_scores

GENEVAL = "geneval"


class Readings:
    """A `Judge` of what it is given; the scores of a judge proper do not apply, and are NaN.

    Args:
        scorers: On pixels, by the names that their scores get.
        geneval: Adds the score `geneval`.
        features: Pictures to rows, for diversity; None measures none.
        device: Where pictures are shown.
        fingerprint: Of everything that is given here, for whoever keeps scores; None where nobody has looked.

    Attributes:
        names: Of the scores, the first of which decides comparisons.

    Raises:
        UserError: Nothing to measure, a scorer on latents, or a name that is taken.
    """

    def __init__(
        self,
        scorers: Mapping[str, Feedback],
        *,
        geneval: GenEval | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
        fingerprint: str | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.scorers, self.geneval, self.extract, self.device = dict(scorers), geneval, features, device
        self.names = (*self.scorers, *(() if geneval is None else (GENEVAL,)))
        if not self.names:
            raise UserError(
                "there is nothing to measure; name a scorer, or a detector for a suite of GenEval"
            )
        taken = {*JUDGE_KEYS, "overall", "diversity"} | ({GENEVAL} if geneval is not None else set())
        for name, scorer in self.scorers.items():
            if name in taken or "/" in name:
                raise UserError(f"a score cannot be called {name!r}; write another name, as mine={name}")
            if scorer.space != "pixel":
                raise UserError(
                    f"{name} reads {scorer.space}s, and these are pictures; choose a scorer on pixels"
                )

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores by name, and NaN for `JUDGE_KEYS`.

        Raises:
            FeedbackFailed: A scorer that gives something else than a finite number per picture.
        """
        shown = images.float().to(self.device)
        found = dict.fromkeys(JUDGE_KEYS, torch.full((len(images),), float("nan")))
        for name, scorer in self.scorers.items():
            found[name] = require_scores(scorer(shown, list(prompts)), shown, name=name).cpu()
        if self.geneval is not None:
            found[GENEVAL] = self.geneval(shown, prompts)
        return found

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features, of no dimension where there is no extractor."""
        if self.extract is None:
            return torch.zeros(len(images), 0)
        return self.extract(images.float().to(self.device)).cpu()
