"""Losses of segmenters that answer with queries: q classes and q masks per picture (MaskFormer and its kin).

Letters: b samples, q queries, k categories (index k is "no object"), n instances of one picture.

Two readings of the same answer. The dense one (`dense_query_loss`) first puts the queries together per pixel, so that
every pixel is told something; the sparse one (`matched_query_loss`) pairs each instance with one query.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unifl.losses.dense import MASK_WEIGHT, dice_loss
from unifl.losses.precision import at_least_float32

CLASS_WEIGHT, PIXEL_WEIGHT, DICE_WEIGHT, NO_OBJECT_WEIGHT = 2.0, 5.0, 5.0, 0.1
"""Weights of Mask2Former, arXiv 2112.01527, section 4.1."""

_NEARLY_ONE = 1 - 1e-3  # a query claims no pixel for certain: logarithms and gradients stay finite
_TINY = 1e-6


def semantic_scores(
    class_logits: Float[Tensor, "b q k1"], mask_logits: Float[Tensor, "b q h w"]
) -> Float[Tensor, "b k h w"]:
    """Semantic inference: the sum over queries of class probability times mask probability.

    Args:
        class_logits: before the softmax; the last is "no object".
        mask_logits: before the sigmoid.

    Returns:
        Scores of the k categories, 0 or more; no probabilities, since queries may overlap.

    Reference:
        MaskFormer, arXiv 2107.06278, section 3.4.
    """
    classes = at_least_float32(class_logits).softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", classes, at_least_float32(mask_logits).sigmoid())


def dense_query_loss(
    class_logits: Float[Tensor, "b q k1"],
    mask_logits: Float[Tensor, "b q h w"],
    masks: Sequence[Bool[Tensor, "_ H W"]],
    labels: Sequence[Int[Tensor, " _"]],
    *,
    num_categories: int | None = None,
) -> Float[Tensor, " b"]:
    """The dense reading: cross-entropy of every pixel's category + 3 * Dice of every instance.

    Per pixel p the category scores are those of `semantic_scores`; "background" scores the probability that no query
    claims p, prod_q (1 - o_q m_q(p)) with o_q = 1 - P_q(no object), plus what categories outside the annotation
    score. Divided by their sum they are probabilities. The mask of instance n with category c is

        a_n(p) = 1 - prod_q (1 - r_qn P_q(c) m_q(p)),   r_qn = sum_p m_q G_n / sum_p m_q  (without gradient),

    r_qn being the share of query q that lies within the annotated mask G_n: a query that runs over two instances
    counts in part for each, and Dice tells both. No query is chosen, so no pixel goes without a gradient.

    Args:
        class_logits: see `semantic_scores`.
        mask_logits: see `semantic_scores`; h and w may be smaller than H and W, the annotation is then averaged
            down to them.
        masks: per picture (n, H, W); n may be 0, and empty masks do not count.
        labels: per picture (n,), 0 to `num_categories` - 1.
        num_categories: the annotation knows this many, the first ones of the model's; None is all k.

    Returns:
        One value per picture; without an instance the cross-entropy alone.

    Reference:
        Our own reading; the score is MaskFormer's, the weight of Dice SOLO's (arXiv 1912.04488).
    """
    known = class_logits.shape[-1] - 1 if num_categories is None else num_categories
    classes, probs = at_least_float32(class_logits).softmax(-1), at_least_float32(mask_logits).sigmoid()
    masks, labels = _visible(masks, labels)
    small = [_to_size(m, probs) for m in masks]
    entropy = _pixel_entropy(classes, probs, small, labels, known)
    losses = []
    for sample, (instances, categories) in enumerate(zip(small, labels, strict=True)):
        if len(instances) == 0:
            losses.append(entropy[sample])
            continue
        share = _share_inside(probs[sample].detach(), instances)  # (q, n)
        claim = share * classes[sample][:, categories]
        assembled = torch.stack([_assembled(claim[:, n], probs[sample]) for n in range(len(instances))])
        losses.append(entropy[sample] + MASK_WEIGHT * dice_loss(assembled, instances).mean())
    return torch.stack(losses)


def matched_query_loss(
    class_logits: Float[Tensor, "b q k1"],
    mask_logits: Float[Tensor, "b q h w"],
    masks: Sequence[Bool[Tensor, "_ H W"]],
    labels: Sequence[Int[Tensor, " _"]],
) -> Float[Tensor, " b"]:
    """The query reading: each instance is paired with one query, all others should say "no object".

    2 * cross-entropy of the queries' classes ("no object" weighs 0.1) + 5 * binary cross-entropy + 5 * Dice of the
    matched masks.

    Args:
        class_logits: see `semantic_scores`.
        mask_logits: see `dense_query_loss`.
        masks: per picture (n, H, W); n may be 0, and empty masks do not count. Instances beyond q are left unmatched.
        labels: per picture (n,), 0 to k - 1.

    Returns:
        One value per picture.

    Reference:
        Mask2Former, arXiv 2112.01527, sections 3 and 4.1. Here of the last layer alone, on all pixels in place of
        sampled points, per picture, and with the Dice loss of `unifl.losses.dense.dice_loss`.
    """
    losses = []
    masks, labels = _visible(masks, labels)
    for classes, logits, instances, categories in zip(class_logits, mask_logits, masks, labels, strict=True):
        classes, logits = at_least_float32(classes), at_least_float32(logits)
        small = _to_size(instances, logits)
        queries, chosen = match_queries(classes, logits, small, categories)
        wanted = torch.full_like(classes[:, 0], classes.shape[-1] - 1, dtype=torch.long)
        wanted[queries] = categories.long()[chosen]
        weight = torch.ones_like(classes[0])
        weight[-1] = NO_OBJECT_WEIGHT
        loss = CLASS_WEIGHT * F.cross_entropy(classes, wanted, weight=weight)
        if len(queries):
            pixels = F.binary_cross_entropy_with_logits(logits[queries], small[chosen])
            dice = dice_loss(logits[queries].sigmoid(), small[chosen]).mean()
            loss = loss + PIXEL_WEIGHT * pixels + DICE_WEIGHT * dice
        losses.append(loss)
    return torch.stack(losses)


@torch.no_grad()
def match_queries(
    class_logits: Float[Tensor, "q k1"],
    mask_logits: Float[Tensor, "q h w"],
    masks: Float[Tensor, "n h w"],
    labels: Int[Tensor, " n"],
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """The pairing of queries and instances of least total cost (Hungarian method), m = min(q, n).

    The cost of a pair is -2 P_q(c_n) + 5 * binary cross-entropy + 5 * (1 - 2 sum(p g) / (sum p + sum g)).

    Returns:
        Indices of queries, ascending, and of the instances that they are paired with.

    Reference:
        DETR, arXiv 2005.12872, section 3.1; costs of Mask2Former.
    """
    if len(masks) == 0:
        empty = torch.zeros(0, dtype=torch.long, device=class_logits.device)
        return empty, empty
    logits, truth = mask_logits.flatten(1), masks.flatten(1)
    # binary cross-entropy of all pairs: softplus(x) - x g, mean over pixels
    pixels = (F.softplus(logits).sum(1)[:, None] - logits @ truth.t()) / logits.shape[1]
    probs = logits.sigmoid()
    overlap = (2 * probs @ truth.t() + _TINY) / (probs.sum(1)[:, None] + truth.sum(1)[None] + _TINY)
    likely = class_logits.softmax(-1)[:, labels.long()]
    cost = -CLASS_WEIGHT * likely + PIXEL_WEIGHT * pixels + DICE_WEIGHT * (1 - overlap)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(rows, device=logits.device), torch.as_tensor(columns, device=logits.device)


def _pixel_entropy(
    classes: Float[Tensor, "b q k1"],
    probs: Float[Tensor, "b q h w"],
    masks: Sequence[Float[Tensor, "_ h w"]],
    labels: Sequence[Int[Tensor, " _"]],
    known: int,
) -> Float[Tensor, " b"]:
    """Cross-entropy of each pixel's category against the shares of the annotation, mean over pixels."""
    scores = torch.einsum("bqk,bqhw->bkhw", classes[..., :-1], probs)
    nobody = _none_of((1 - classes[..., -1])[..., None, None] * probs, dim=1)
    background = nobody + scores[:, known:].sum(1)
    everything = torch.cat([scores[:, :known], background[:, None]], 1) + _TINY
    log_probs = everything.log() - everything.sum(1, keepdim=True).log()
    target = torch.stack([_shares(m, c, known) for m, c in zip(masks, labels, strict=True)])
    return -(target * log_probs).sum(1).mean((1, 2))


def _shares(masks: Float[Tensor, "n h w"], labels: Int[Tensor, " n"], known: int) -> Float[Tensor, "k1 h w"]:
    """How much of each pixel belongs to each category, background last; they sum to 1."""
    covered = masks.new_zeros(known, *masks.shape[1:]).index_add(0, labels.long(), masks)
    total = covered.sum(0, keepdim=True)
    return torch.cat([covered / total.clamp(min=1), (1 - total).clamp(min=0)])  # instances may overlap


def _share_inside(probs: Float[Tensor, "q h w"], masks: Float[Tensor, "n h w"]) -> Float[Tensor, "q n"]:
    flat = probs.flatten(1)
    return flat @ masks.flatten(1).t() / flat.sum(1, keepdim=True).clamp(min=_TINY)


def _none_of(claims: Tensor, *, dim: int) -> Tensor:
    """Probability that none of the claims along `dim` holds, if they are independent."""
    return torch.log1p(-_NEARLY_ONE * claims).sum(dim).exp()


def _assembled(claim: Float[Tensor, " q"], probs: Float[Tensor, "q h w"]) -> Float[Tensor, "h w"]:
    """The mask of one instance; recomputed during backward, or all instances together would store n q h w numbers."""

    def put_together(weight: Tensor, masks: Tensor) -> Tensor:
        return 1 - _none_of(weight[:, None, None] * masks, dim=0)

    if not torch.is_grad_enabled():
        return put_together(claim, probs)
    return checkpoint(put_together, claim, probs, use_reentrant=False, preserve_rng_state=False)


def _visible(
    masks: Sequence[Bool[Tensor, "_ H W"]], labels: Sequence[Int[Tensor, " _"]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Without instances of no pixel, which nothing in the picture can answer."""
    seen = [m.flatten(1).any(1) for m in masks]
    return [m[s] for m, s in zip(masks, seen, strict=True)], [c[s] for c, s in zip(labels, seen, strict=True)]


def _to_size(masks: Bool[Tensor, "n H W"], like: Float[Tensor, "*d h w"]) -> Float[Tensor, "n h w"]:
    """Masks as shares of the pixels of the answer."""
    height, width = like.shape[-2:]
    if len(masks) == 0:  # which pooling refuses
        return like.new_zeros(0, height, width)
    return F.adaptive_avg_pool2d(masks.to(like.dtype), (height, width))
