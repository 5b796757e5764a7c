"""Losses of a latent proxy (RG-LCD, arXiv 2403.11027): contrastive pre-training, and pairs that follow an expert.

The columns of scores are the latents of one caption: 0 the student's prediction, 1 its target, 2 the real one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unifl.losses.precision import at_least_float32

PAIRS = ((0, 1), (0, 2), (1, 2))
"""Columns that are compared: student with target, student with real, target with real."""
_REAL = 2


def contrastive(logits: Float[Tensor, "b b"], same: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:
    """Symmetric cross-entropy of matching latents and captions: the mean of both directions.

    Args:
        logits: exp(logit scale) times the cosine of latent i (row) and caption j (column).
        same: where captions i and j are equal. Such a pair is a match too, and is left out of the negatives.

    Returns:
        One loss per row; log b where all logits are equal and no captions are.

    Reference:
        Radford et al., CLIP, arXiv 2103.00020, figure 3.
    """
    logits = at_least_float32(logits)
    if same is not None:
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(others, -torch.inf)
    here = torch.arange(len(logits), device=logits.device)
    by_latent = F.cross_entropy(logits, here, reduction="none")
    by_caption = F.cross_entropy(logits.T, here, reduction="none")
    return (by_latent + by_caption) / 2


def pairwise_fit(
    proxy: Float[Tensor, "b 3"],
    expert: Float[Tensor, "b 3"],
    *,
    temperature: int | float,
    smooth_real: bool = False,
    hard: bool = False,
) -> Float[Tensor, " b"]:
    """How far the proxy's preferences are from the expert's, summed over the three pairs of each caption.

    For a pair (i, j) the proxy prefers i with probability p = softmax([S_i, S_j])_i, the expert with
    q = softmax([Q_i, Q_j] / temperature)_i, and the loss is KL(q || p).

    Args:
        proxy: S, exp(logit scale) times the cosine.
        expert: Q on the expert's own scale, higher is better; treated as constants.
        temperature: of the expert, in its own units: 0.01 turns the raw cosines of a CLIP into its logits.
        smooth_real: where the expert prefers a generated latent to the real one, q is 1/2, so that the proxy never
            learns that generated beats real.
        hard: cross-entropy with a label instead of the KL: the real latent always wins, and of student and target
            the one that the expert prefers (1/2 each where it is undecided). It replaces both other settings.

    Returns:
        One loss per caption. 0 where p = q, except with `hard`, whose least value is 0 for decided pairs and log 2
        for undecided ones.

    Reference:
        RG-LCD, arXiv 2403.11027, the fitting of the latent proxy and its two options. A hinged expert gives equal
        scores above the hinge, hence q = 1/2.
    """
    proxy, expert = at_least_float32(proxy), at_least_float32(expert).detach()
    total = torch.zeros(len(proxy), dtype=proxy.dtype, device=proxy.device)
    for i, j in PAIRS:
        logit = proxy[:, i] - proxy[:, j]
        ahead = expert[:, i] - expert[:, j]
        if hard:
            label = torch.zeros_like(ahead) if j == _REAL else (1 + ahead.sign()) / 2
            total = total - label * F.logsigmoid(logit) - (1 - label) * F.logsigmoid(-logit)
            continue
        if smooth_real and j == _REAL:
            ahead = ahead.clamp(max=0)  # a difference of 0 is q = 1/2
        total = total + _bernoulli_kl(ahead / temperature, logit)
    return total


def pairwise_agreement(proxy: Float[Tensor, "b 3"], expert: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
    """Whether proxy and expert order a pair alike: 1, 0, or 1/2 where either of them is undecided.

    Args:
        proxy: scores on any scale.
        expert: scores on any scale.

    Returns:
        Columns in the order of `PAIRS`; the mean is the share of agreeing pairs, 1/2 by chance.
    """
    first, second = (list(column) for column in zip(*PAIRS, strict=True))
    signs = [(scores[:, first] - scores[:, second]).sign() for scores in (proxy, expert)]
    return (1 + at_least_float32(signs[0]) * at_least_float32(signs[1])) / 2


def _bernoulli_kl(q_logit: Float[Tensor, " b"], p_logit: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """KL(q || p) of two coins by their logits; exactly 0 where these are equal."""
    heads = F.logsigmoid(q_logit) - F.logsigmoid(p_logit)
    tails = F.logsigmoid(-q_logit) - F.logsigmoid(-p_logit)
    return torch.sigmoid(q_logit) * heads + torch.sigmoid(-q_logit) * tails
