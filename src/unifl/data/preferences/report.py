"""What is in preference data, before anybody learns from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifl.data.preferences.filters import count_outcomes, duplicates
from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.scored_forms import JudgedIndex

BINS = 10
"""Of the histogram of strengths: (0, 0.1], (0.1, 0.2], ... (0.9, 1]."""


@dataclass(frozen=True)
class Contradictions:
    """Comparisons that cannot both be learned; those of other prompts or axes do not count.

    Attributes:
        pairs: Two pictures of which each won once.
        pictures: Pictures that won once and lost once.
        rows: Comparisons with such a picture as winner or loser.
    """

    pairs: int
    pictures: int
    rows: int


@dataclass(frozen=True)
class Winners:
    """Absolute winners: pictures without a loss or a draw.

    Attributes:
        pictures: How many there are.
        rows: Comparisons that they win.
        share: Of all labelled comparisons, ties included.
        more_than_one: How many won more than once.
        rows_more_than_one: Comparisons that these win.
    """

    pictures: int
    rows: int
    share: float
    more_than_one: int
    rows_more_than_one: int


@dataclass(frozen=True)
class PreferenceReport:
    """Numbers about pairs.

    Attributes:
        rows: Comparisons in the data.
        missing: Without a label.
        identical: Of a picture with itself.
        too_close: Of scores that were too close, for a sample store.
        labelled: What is left; all that follows is about these.
        ties: That nobody won.
        prompts: Different prompts.
        pictures: Different pictures; every one that is shown where they have neither names nor uids.
        axes: Comparisons by axis, where they have one.
        users: Different users; 0 where they are not known.
        duplicates: Rows that say exactly what another one says; None where pictures are not known.
        contradictions: None where pictures are not known.
        winners: None where pictures are not known.
        strengths: Comparisons that somebody won, by strength, in ten bins.
    """

    rows: int
    missing: int
    identical: int
    too_close: int
    labelled: int
    ties: int
    prompts: int
    pictures: int
    axes: dict[str, int]
    users: int
    duplicates: int | None
    contradictions: Contradictions | None
    winners: Winners | None
    strengths: list[int]


@dataclass(frozen=True)
class JudgedReport:
    """Numbers about pictures that were judged one by one.

    Attributes:
        rows: In the data.
        missing: Without a label.
        prompts: Different prompts.
        pictures: Different pictures.
        liked: Rows with score 1, where scores are likes.
        disliked: Rows with score 0, where scores are likes.
        contradictions: Pictures that were liked and disliked for one prompt; None where scores are no likes or
            pictures are not known.
        lowest: Score.
        mean: Score.
        highest: Score.
    """

    rows: int
    missing: int
    prompts: int
    pictures: int
    liked: int | None
    disliked: int | None
    contradictions: int | None
    lowest: float
    mean: float
    highest: float


def report_pairs(index: PreferenceIndex) -> PreferenceReport:
    """Count what is in an index, which should not have been filtered yet."""
    left_out, known = index.left_out, index.pictures.known
    edges = np.linspace(0, 1, BINS + 1)
    decided = index.strength[~index.tie].astype(np.float64)
    bins = np.clip(np.ceil(decided * BINS - 1e-6).astype(np.int64) - 1, 0, len(edges) - 2)
    axis = np.bincount(index.axes.codes[index.axes.codes >= 0], minlength=len(index.axes.values))
    return PreferenceReport(
        rows=left_out.read,
        missing=left_out.missing,
        identical=left_out.identical,
        too_close=left_out.too_close,
        labelled=len(index),
        ties=int(index.tie.sum()),
        prompts=_different(index.prompts.codes),
        pictures=_different(np.concatenate([index.win, index.lose])),
        axes=dict(zip(index.axes.values, axis.tolist(), strict=True)),
        users=_different(index.users.codes[index.users.codes >= 0]),
        duplicates=int(duplicates(index).sum()) if known else None,
        contradictions=_contradictions(index) if known else None,
        winners=_winners(index) if known else None,
        strengths=np.bincount(bins, minlength=BINS).tolist(),
    )


def report_judged(index: JudgedIndex) -> JudgedReport:
    """Count what is in an index of judged pictures."""
    score = index.score
    liked = disliked = contradictions = None
    if index.binary:
        liked, disliked = int((score == 1).sum()), int((score == 0).sum())
        if index.pictures.known:
            keys = index.prompts.codes.astype(np.int64) * max(len(index.pictures), 1) + index.picture
            contradictions = len(np.intersect1d(keys[score == 1], keys[score == 0]))
    spread = (score.min(), score.mean(), score.max()) if len(score) else (0.0, 0.0, 0.0)
    lowest, mean, highest = map(float, spread)
    return JudgedReport(
        rows=index.left_out.read,
        missing=index.left_out.missing,
        prompts=_different(index.prompts.codes),
        pictures=_different(index.picture),
        liked=liked,
        disliked=disliked,
        contradictions=contradictions,
        lowest=lowest,
        mean=mean,
        highest=highest,
    )


def _contradictions(index: PreferenceIndex) -> Contradictions:
    counts = count_outcomes(index)
    torn = (counts.wins > 0) & (counts.losses > 0)
    rows = ~index.tie & (torn[counts.winner] | torn[counts.loser])
    # pictures of a group have numbers of their own in the counts, so two of these name a pair of one question
    number = max(len(counts.wins), 1)
    winner, loser = counts.winner[~index.tie], counts.loser[~index.tie]
    one_way, other_way = winner * number + loser, loser * number + winner
    both = np.intersect1d(one_way, other_way)
    return Contradictions(len(both) // 2, int(torn.sum()), int(rows.sum()))


def _winners(index: PreferenceIndex) -> Winners:
    counts = count_outcomes(index)
    absolute = (counts.losses == 0) & (counts.draws == 0) & (counts.wins > 0)
    more = absolute & (counts.wins > 1)
    rows = int(counts.wins[absolute].sum())
    return Winners(
        int(absolute.sum()),
        rows,
        rows / max(len(index), 1),
        int(more.sum()),
        int(counts.wins[more].sum()),
    )


def _different(codes: np.ndarray) -> int:
    return len(np.unique(codes))
