from __future__ import annotations

import itertools
import math

import pytest
import torch

from unifl.losses.dense import dice_loss
from unifl.losses.queries import (
    dense_query_loss,
    match_queries,
    matched_query_loss,
    semantic_scores,
)

SURE = 30.0


def _scene():
    """Two instances, of categories 1 and 2 of three, on 8 x 8."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4], masks[1, 4:, :4] = True, True
    return masks, torch.tensor([1, 2])


def _answer(masks, categories, num_categories=3):
    """Queries that say exactly this, one more that says "no object"."""
    classes = torch.full((1, len(masks) + 1, num_categories + 1), -SURE)
    classes[0, range(len(masks)), categories] = SURE
    classes[0, -1, -1] = SURE
    logits = torch.where(torch.cat([masks, torch.zeros_like(masks[:1])]), SURE, -SURE)[None]
    return classes, logits


def _random(b=2, q=5, k=3, side=8):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(b, q, k + 1, generator=draw), torch.randn(b, q, side, side, generator=draw)


LOSSES = [dense_query_loss, matched_query_loss]


def test_semantic_scores_sum_over_queries():
    classes, logits = _random()
    scores = semantic_scores(classes, logits)
    probs = classes[1].softmax(-1)
    by_hand = sum(probs[q, 2] * torch.sigmoid(logits[1, q, 3, 5]) for q in range(5))
    torch.testing.assert_close(scores[1, 2, 3, 5], by_hand)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_right_answer_costs_nothing_and_the_order_of_queries_does_not_count(loss):
    masks, labels = _scene()
    classes, logits = _answer(masks, labels)
    right = loss(classes, logits, [masks], [labels])
    assert float(right) < 2e-3
    turned = torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(classes[:, turned], logits[:, turned], [masks], [labels]), right)
    wrong_class = loss(*_answer(masks, [2, 1]), [masks], [labels])
    wrong_place = loss(*_answer(masks.flip(2), [1, 2]), [masks], [labels])
    missing = loss(*_answer(masks[:1], [1]), [masks], [labels])
    assert min(float(wrong_class), float(wrong_place), float(missing)) > 0.5


def test_one_query_over_two_instances_is_seen_by_both():
    """Merging two neighbours of one category is right for every pixel's category, and only Dice tells."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:] = True, True
    labels = torch.tensor([1, 1])
    merged = dense_query_loss(*_answer(masks.any(0, keepdim=True), [1]), [masks], [labels])
    # each instance gets half of the query's mask: 1 - 2 * 16 / (64 / 4 + 32) = 1/3, three times
    assert math.isclose(float(merged), 1.0, abs_tol=0.02)
    assert float(dense_query_loss(*_answer(masks, [1, 1]), [masks], [labels])) < 2e-3


def test_dense_loss_of_one_query_by_hand():
    """One query of class probability p and mask probability m everywhere, one instance that is the left half."""
    p, m = 0.7, 0.6
    classes = torch.tensor([[[p, 1 - p]]]).log()
    logits = torch.full((1, 1, 4, 4), math.log(m / (1 - m)))
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :, :2] = True
    score, nobody = p * m, 1 - p * m
    entropy = -(math.log(score / (score + nobody)) + math.log(nobody / (score + nobody))) / 2
    assembled = 0.5 * p * m  # half of the query's mask lies inside
    dice = 1 - 2 * 8 * assembled / (16 * assembled**2 + 8)
    found = dense_query_loss(classes, logits, [mask], [torch.tensor([0])])
    torch.testing.assert_close(found, torch.tensor([entropy + 3 * dice]), rtol=2e-3, atol=0)


def test_query_loss_by_hand():
    classes, logits = _random(b=1)
    masks, labels = _scene()
    queries, chosen = match_queries(classes[0], logits[0], masks.float(), labels)
    wanted = torch.full((5,), 3)
    wanted[queries] = labels[chosen]
    logs = classes[0].log_softmax(-1)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])[wanted]
    entropy = -(weight * logs[range(5), wanted]).sum() / weight.sum()
    matched, truth = logits[0, queries], masks[chosen].float()
    probs = matched.sigmoid()
    pixels = -(truth * probs.log() + (1 - truth) * (1 - probs).log()).mean()
    expected = 2 * entropy + 5 * pixels + 5 * dice_loss(probs, truth).mean()
    torch.testing.assert_close(matched_query_loss(classes, logits, [masks], [labels])[0], expected)


def test_matching_is_the_cheapest_of_all():
    classes, logits = (part[0] for part in _random())
    masks, labels = _scene()

    def cost(pairs):
        total = 0.0
        for query, instance in pairs:
            probs, truth = logits[query].sigmoid(), masks[instance].float()
            entropy = torch.nn.functional.binary_cross_entropy(probs, truth)
            overlap = 2 * (probs * truth).sum() / (probs.sum() + truth.sum())
            total += float(
                -2 * classes[query].softmax(-1)[labels[instance]] + 5 * entropy + 5 * (1 - overlap)
            )
        return total

    everything = [list(zip(rows, (0, 1), strict=True)) for rows in itertools.permutations(range(5), 2)]
    best = min(everything, key=cost)
    queries, chosen = match_queries(classes, logits, masks.float(), labels)
    assert sorted(zip(queries.tolist(), chosen.tolist(), strict=True)) == sorted(best)


def test_more_instances_than_queries_and_none_at_all():
    classes, logits = _random(b=1, q=2)
    masks = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5  # larger than the answer
    labels = torch.tensor([0, 1, 2])
    nothing = masks[:0], labels[:0]
    for loss in LOSSES:
        assert bool(loss(classes, logits, [masks], [labels]).isfinite().all())
        assert bool(loss(classes, logits, [nothing[0]], [nothing[1]]).isfinite().all())
    quiet = torch.full((1, 2, 4), -SURE)
    quiet[..., -1] = SURE
    for loss in LOSSES:
        assert float(loss(quiet, logits, [nothing[0]], [nothing[1]])) < 2e-3


@pytest.mark.parametrize("loss", [dense_query_loss, matched_query_loss])
def test_empty_masks_do_not_count(loss):
    draw = torch.Generator().manual_seed(3)
    classes, logits = torch.randn(1, 6, 4, generator=draw), torch.randn(1, 6, 8, 8, generator=draw)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:6, 2:6] = True
    alone = loss(classes, logits, [mask], [torch.tensor([1])])
    beside = loss(classes, logits, [torch.cat([mask, mask & False])], [torch.tensor([1, 2])])
    assert torch.equal(alone, beside)


def test_categories_beyond_the_annotation_are_background():
    """A panoptic model that sees sky behind the annotated thing is not wrong."""
    masks, labels = _scene()
    classes, logits = _answer(torch.cat([masks, ~masks.any(0, keepdim=True)]), [1, 2, 3], num_categories=4)
    everything = dense_query_loss(classes, logits, [masks], [labels])
    things = dense_query_loss(classes, logits, [masks], [labels], num_categories=3)
    assert float(things) < 2e-3 < 1 < float(everything)


def test_every_pixel_of_every_query_gets_a_gradient_from_the_dense_reading_only():
    """What UniFL's appendix A.2 holds against sparse queries: those that are not matched hear of no pixel."""
    masks, labels = _scene()
    untouched = {}
    for loss in LOSSES:
        classes, logits = (part.requires_grad_() for part in _random(b=1))
        loss(classes, logits, [masks], [labels]).sum().backward()
        untouched[loss.__name__] = float((logits.grad == 0).float().mean())
    assert untouched["dense_query_loss"] == 0
    assert math.isclose(
        untouched["matched_query_loss"], 3 / 5, rel_tol=1e-6
    )  # of five queries two are matched


def test_gradients_are_those_of_float64_and_samples_do_not_see_each_other():
    classes, logits = (part.double().requires_grad_() for part in _random(b=1, q=3, side=4))
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 2:] = True, True
    labels = torch.tensor([0, 2])
    # the share of a query inside an instance is taken as given, so the classes alone are checked for the dense one
    assert torch.autograd.gradcheck(
        lambda c: dense_query_loss(c, logits.detach(), [masks], [labels]), (classes,)
    )
    assert torch.autograd.gradcheck(
        lambda c, x: matched_query_loss(c, x, [masks], [labels]), (classes, logits)
    )
    both = _random(side=4)
    for loss in LOSSES:
        together = loss(*both, [masks, masks[:1]], [labels, labels[:1]])
        alone = loss(both[0][1:], both[1][1:], [masks[:1]], [labels[:1]])
        torch.testing.assert_close(together[1:], alone)
