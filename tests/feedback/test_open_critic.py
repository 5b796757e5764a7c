"""Each critic on a tiny random checkpoint of its architecture."""

from __future__ import annotations

import pytest
import torch
from critic_cases import CASES, SIDE, THOROUGH, batch_of, opened, start

from unifl.data import Sample, collate
from unifl.feedback import Critic, InstancesConfig, open_critic, require_critic_gradient


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_reaches_every_picture_and_no_weight(case, checkpoint):
    critic, batch = opened(case, checkpoint), batch_of()
    assert isinstance(critic, Critic) and critic.name == case
    weights = {}
    if case != "edges":
        weights = {name: tensor.clone() for name, tensor in critic.network.state_dict().items()}
        assert weights and not any(module.training for module in critic.network.modules())
    images = start(batch)
    losses = critic(images, batch)
    assert losses.shape == (2,) and bool(losses.isfinite().all()) and bool((losses > 0).all())
    losses.sum().backward()
    assert bool(images.grad.isfinite().all())
    assert float(images.grad.flatten(1).norm(dim=1).min()) > 1e-7
    if case != "edges":
        assert all(not p.requires_grad and p.grad is None for p in critic.network.parameters())
        after = critic.network.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in weights.items())
    require_critic_gradient(critic, batch)


@pytest.mark.parametrize("case", THOROUGH)
def test_the_loss_falls_when_the_picture_follows_its_gradient(case, checkpoint):
    critic, batch = opened(case, checkpoint), batch_of()
    target = critic.pseudo(batch) if case == "segformer" else batch
    images = start(batch)
    optimizer = torch.optim.Adam([images], lr=0.02)
    first = critic(images, target).detach()
    for _ in range(8):
        optimizer.zero_grad()
        critic(images, target).sum().backward()
        optimizer.step()
    last = critic(images, target).detach()
    assert bool((last < first).all()), (first, last)


@pytest.mark.parametrize("case", [case for case in THOROUGH if case != "edges"])
def test_samples_do_not_see_each_other_and_checkpointing_changes_nothing(case, checkpoint):
    batch = batch_of()
    plain, frugal = (opened(case, checkpoint, checkpointing=on) for on in (False, True))
    images = start(batch)
    losses = plain(images, batch)
    (expected,) = torch.autograd.grad(losses.sum(), images)
    again = frugal(images, batch)
    (gradient,) = torch.autograd.grad(again.sum(), images)
    torch.testing.assert_close(again, losses, rtol=1e-4, atol=1e-6)
    # relative to the whole gradient: bilinear upsampling sums in another order for another batch size
    assert float((gradient - expected).norm() / expected.norm()) < 1e-3
    torch.testing.assert_close(frugal(images.detach(), batch), losses.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["dpt", "glpn", "edges", "vgg16", "resnet", "dinov2"])
def test_the_real_picture_itself_costs_nothing(case, checkpoint):
    critic, batch = opened(case, checkpoint), batch_of()
    assert float(critic(batch.images, batch).abs().max()) < 1e-5
    assert float(critic(start(batch).detach(), batch).min()) > 1e-4
    assert critic.pseudo(batch) is batch


def test_pseudo_maps_and_instances_are_what_the_model_sees(checkpoint):
    bare = collate([Sample(image, "a") for image in batch_of().images])
    semantic = opened("segformer", checkpoint)
    found = semantic.pseudo(bare).semantic
    logits = semantic.network(bare.images)
    large = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")
    assert torch.equal(found, large.argmax(1))
    # no other map of one class each fits better than what the model itself says
    own = semantic(bare.images, bare.with_semantic(found))
    for label in range(3):
        other = semantic(bare.images, bare.with_semantic(torch.full_like(found, label)))
        assert bool((own <= other + 1e-6).all())
    for case in ("mask2former", "maskformer"):
        critic = opened(case, checkpoint, score_threshold=0.0)
        annotated = critic.pseudo(bare)
        for masks, labels in zip(annotated.masks, annotated.labels, strict=True):
            assert 0 < len(masks) == len(labels) <= 6 and masks.dtype == torch.bool
            assert masks.shape[1:] == (SIDE, SIDE) and bool(masks.flatten(1).any(1).all())
            assert 0 <= int(labels.min()) and int(labels.max()) < 3
        assert bool(critic(bare.images, annotated).isfinite().all())
        nothing = opened(case, checkpoint, score_threshold=1.0).pseudo(bare)
        assert nothing.masks[0].shape == (0, SIDE, SIDE)


def test_pseudo_instances_read_queries_that_are_sure():
    """A network that answers by rule: one red query of category 1, one green of category 0, one silent."""
    from unifl.feedback import QueryCritic

    class Colours(torch.nn.Module):
        def forward(self, images):
            classes = torch.tensor([[-9.0, 9, -9], [9.0, -9, -9], [-9.0, -9, 9]])
            masks = torch.stack([images[:, 0], images[:, 1], images[:, 0]], 1)
            return classes.expand(len(images), -1, -1), 20 * (masks[..., ::2, ::2] - 0.5)

    image = torch.zeros(3, 16, 16)
    image[0, :8, :8], image[1, 8:, 8:] = 1, 1
    found = QueryCritic(Colours()).pseudo(collate([Sample(image, "a")]))
    by_label = dict(zip(found.labels[0].tolist(), found.masks[0], strict=True))
    assert set(by_label) == {0, 1}
    assert torch.equal(by_label[1], image[0] > 0.5) and torch.equal(by_label[0], image[1] > 0.5)
    # the second category is not among those that the annotation knows
    assert QueryCritic(Colours(), num_categories=1).pseudo(collate([Sample(image, "a")])).labels[
        0
    ].tolist() == [0]


@pytest.mark.parametrize("dense", ["mask2former", "mask2former-queries"])
def test_the_readings_are_the_losses(dense, checkpoint):
    from unifl.losses import dense_query_loss, matched_query_loss

    critic, batch = opened(dense, checkpoint), batch_of()
    loss = matched_query_loss if "queries" in dense else dense_query_loss
    expected = loss(*critic.network(batch.images), batch.masks, batch.labels)
    assert torch.equal(critic(batch.images, batch), expected)


def test_our_own_solo_opens_from_a_folder():
    from unifl.world.assets import ASSETS, load_critics

    batch = batch_of()
    ours = open_critic(InstancesConfig(model=str(ASSETS / "critics")), name="structure")
    assert torch.equal(ours(batch.images, batch), load_critics()["structure"](batch.images, batch))
