from __future__ import annotations

import pytest
import torch

from unifl.errors import FeedbackFailed, UserError
from unifl.feedback import BlackBoxFeedback, JpegSize, LatentProxyConfig, as_feedback, make_proxy
from unifl.losses.proxy import pairwise_fit
from unifl.methods.base import MicroBatch, StepOutput
from unifl.methods.counting import Evaluations
from unifl.methods.pictures import DecodeConfig
from unifl.methods.proxy import ProxyConfig, ProxyTerm
from unifl.randomness import Key

PROMPTS = ["a red circle", "two cats", "a dog", "a small blue square"]
SHAPE = dict(channels=4, size=8, width=16, depth=3, heads=2, patch=2, embedding=16, scaling_factor=0.18215)


class LatentMean:
    """An expert on latents that reads the caption: its length decides the sign."""

    name, space, differentiable = "mean", "latent", False
    needs, range = frozenset({"prompt"}), None

    def __init__(self):
        self.asked = []

    def __call__(self, latents, prompts):
        assert not torch.is_grad_enabled()
        self.asked.append((latents.clone(), list(prompts)))
        signs = torch.tensor([1.0 if len(prompt) > 8 else -1.0 for prompt in prompts])
        return signs * latents.mean((1, 2, 3))


def network(**settings):
    words = dict(text="hashed", text_width=16, text_depth=2, text_heads=2)
    return make_proxy(LatentProxyConfig(**SHAPE | words | settings))


@pytest.fixture
def build(make):
    def term(expert=None, proxy=None, **settings):
        settings = {"image_blocks": 1, "text_blocks": 1} | settings
        found = network() if proxy is None else proxy
        return ProxyTerm(make(), found, expert or LatentMean(), ProxyConfig(**settings), DecodeConfig())

    return term


def micro(b=4, step=0):
    return MicroBatch(Key(0, step, tuple(range(b))), {})


def latents(b=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, target, real = (
        0.18 * (torch.randn(b, 4, 8, 8, generator=generator) + torch.randn(b, 1, 1, 1, generator=generator))
        for _ in range(3)
    )
    return student.requires_grad_(), target, real


def test_the_students_loss_is_minus_the_cosine_and_leaves_the_proxy_alone(build):
    term, output = build(weight=0.5), StepOutput(losses={})
    student, _, _ = latents()
    reward = term.student(student, PROMPTS, output)
    expected = term.proxy.cosine(student.detach(), PROMPTS).detach()
    assert torch.allclose(reward, expected, atol=1e-6)
    assert float(output.losses["reward/proxy"].detach()) == pytest.approx(-0.5 * float(expected.mean()))
    assert float(output.metrics["reward/proxy"]) == pytest.approx(float(expected.mean()))
    output.losses["reward/proxy"].backward()
    assert all(parameter.grad is None for parameter in term.proxy.parameters())
    with torch.no_grad():
        better = student - 0.01 * student.grad / student.grad.norm()
        assert float(term.proxy(better, PROMPTS).mean()) > float(expected.mean())


def test_the_proxy_is_fitted_to_the_expert_on_latents_with_their_own_captions(build):
    term = build(batch_size=3, temperature=0.1)
    batch, three = micro(), latents()
    term.expert.asked.clear()
    term.keep(batch, *three, PROMPTS)
    ((shown, captions),) = term.expert.asked  # asked once about all three
    assert captions == captions[:3] * 3 and len(shown) == 9 and not shown.requires_grad
    order = [PROMPTS.index(caption) for caption in captions[:3]]
    assert order != sorted(order) and len(set(order)) == 3  # rows are drawn
    for kind in range(3):
        assert torch.equal(shown[3 * kind : 3 * kind + 3], three[kind].detach()[order])
    output = term.update(batch)
    proxy = torch.stack([term.proxy.logits(z.detach()[order], captions[:3]) for z in three], 1)
    signs = torch.tensor([1.0 if len(caption) > 8 else -1.0 for caption in captions[:3]])
    expert = torch.stack([signs * z.detach()[order].mean((1, 2, 3)) for z in three], 1)
    expected = pairwise_fit(proxy, expert, temperature=0.1).mean()
    assert torch.allclose(output.losses["kl"], expected, rtol=1e-4)
    assert float(output.metrics["expert/real"]) == pytest.approx(float(expert[:, 2].mean()), rel=1e-5)
    assert batch.scratch == {}


def test_rows_depend_on_the_key_and_not_on_what_happened_before(build):
    term = build(batch_size=2)
    draws = [term._rows(Key(0, step, (0, 1, 2, 3))) for step in (0, 1, 2, 3, 0)]
    assert draws[0] == draws[4] and len({tuple(rows) for rows in draws}) > 1
    assert term._rows(Key(0, 0, (7,))) == [0]


@pytest.mark.parametrize(("expert", "temperature"), [("latent", 0.02), ("pixel", 0.001), ("jpeg", 0.005)])
def test_fitting_raises_the_agreement_whatever_the_expert_is(build, expert, temperature):
    experts = {
        "latent": LatentMean,
        "pixel": lambda: as_feedback(
            lambda images: images[:, 0].mean((1, 2)), name="red", needs_prompt=False
        ),
        "jpeg": JpegSize,
    }
    term = build(experts[expert](), temperature=temperature, image_blocks=None, text_blocks=None)
    optimizer = torch.optim.AdamW(term.parameters["proxy"], lr=1e-2, weight_decay=0.0)
    losses, agreements = [], []
    for step in range(25):
        batch = micro(step=step)
        term.keep(batch, *latents(seed=1), PROMPTS)
        output = term.update(batch)
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()
        losses.append(float(output.losses["kl"].detach()))
        agreements.append(float(output.metrics["proxy/agreement"]))
    assert losses[-1] < 0.3 * losses[0]
    assert agreements[0] < 0.7 and agreements[-1] > 0.9


def test_only_what_was_unlocked_moves_over_whole_steps_and_checkpoints_hold_the_proxy(build):
    term = build(image_blocks=1, text_blocks=1)
    names = {id(parameter): name for name, parameter in term.proxy.named_parameters()}
    unlocked = {names[id(parameter)] for parameter in term.parameters["proxy"]}
    assert {name.split(".")[0] for name in unlocked} == {"image", "text", "logit_scale"}
    assert term.updates == ("proxy",) and term.modules == {"proxy": term.proxy}
    before = {name: value.clone() for name, value in term.proxy.state_dict().items()}
    optimizer = torch.optim.AdamW(term.parameters["proxy"], lr=1e-2)
    for step in range(3):
        batch, three, output = micro(step=step), latents(seed=step), StepOutput(losses={})
        term.student(three[0], PROMPTS, output)
        output.losses["reward/proxy"].backward()
        term.keep(batch, *three, PROMPTS)
        optimizer.zero_grad()
        sum(term.update(batch).losses.values()).backward()
        optimizer.step()
    for name, value in term.proxy.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in unlocked), name


def test_a_frozen_proxy_has_no_second_update_and_needs_no_expert(make):
    term = ProxyTerm(make(), network(), None, ProxyConfig(train=False), DecodeConfig())
    assert term.updates == () and term.parameters == {} and term.modules == {}
    batch, output = micro(), StepOutput(losses={})
    three = latents()
    term.student(three[0], PROMPTS, output)
    term.keep(batch, *three, PROMPTS)
    assert batch.scratch == {} and term.update(batch).losses == {}
    output.losses["reward/proxy"].backward()
    assert not term.proxy.trainable_parameters() and three[0].grad.abs().max() > 0
    with pytest.raises(UserError, match="follows an expert"):
        ProxyTerm(make(), network(), None, ProxyConfig(), DecodeConfig())


def test_hard_labels_and_smoothing_reach_the_loss(build):
    found = {}
    for name, settings in (
        ("kl", {}),
        ("smooth", {"smooth_real": True}),
        ("hard", {"loss": "hard"}),
    ):
        term, batch = build(temperature=0.02, **settings), micro()
        term.keep(batch, *latents(), PROMPTS)
        found[name] = float(next(iter(term.update(batch).losses.values())).detach())
    assert len(set(found.values())) == 3


def test_an_expert_is_tried_before_training_and_fails_before_anything_moves(build):
    with pytest.raises(FeedbackFailed, match=r"shape \(1,\) for 2 pictures"):
        build(as_feedback(lambda images, prompts: torch.zeros(1), differentiable=False))
    answers = iter([[0.0, 0.0], [float("nan")] * 12])
    term = build(BlackBoxFeedback(lambda images, prompts: next(answers), name="far", retries=0))
    with pytest.raises(FeedbackFailed, match="'far' returned nan"):
        term.keep(micro(), *latents(), PROMPTS)


def test_a_proxy_for_other_latents_is_refused(build):
    with pytest.raises(UserError, match="reads 8 channels, but the latents have 4"):
        build(proxy=network(channels=8))
    with pytest.raises(UserError, match="scale and shift"):
        build(proxy=network(scaling_factor=0.13025))


@pytest.mark.parametrize("pixel", [True, False])
@pytest.mark.parametrize("text_blocks", [0, 1])
@pytest.mark.parametrize("rows", [3, 16])
def test_evaluations_are_counted(build, pixel, text_blocks, rows):
    found = {}

    def add(kind, number):
        found[kind] = found.get(kind, 0) + number

    expert = JpegSize() if pixel else LatentMean()
    term = build(expert, batch_size=rows, text_blocks=text_blocks)
    ask = term.expert

    class Asked:
        name, space = expert.name, expert.space

        def __call__(self, shown, prompts):
            add(f"expert/{expert.name} forward", len(shown))
            return ask(shown, prompts)

    term.expert = Asked()
    term.proxy.image.register_forward_hook(
        lambda module, inputs, output: add("proxy forward+backward", len(output))
    )

    def text(module, inputs, output):
        add("proxy text forward+backward" if output.requires_grad else "proxy text forward", len(output))

    term.generator.pipeline.vae.decoder.register_forward_hook(
        lambda module, inputs, output: add("vae decode", len(output))
    )
    batch, three = micro(), latents()
    term.proxy.embed_prompts(PROMPTS)  # fills the cache where the text tower is frozen
    term.proxy.text.register_forward_hook(text)
    term.student(three[0], PROMPTS, StepOutput(losses={}))
    term.keep(batch, *three, PROMPTS)
    term.update(batch)
    count = Evaluations(4, trains_text=False)
    term.count(count)
    assert count.per_step == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, "proxy.weight is 0"),
        ({"temperature": -1.0}, "proxy.temperature is -1"),
        ({"batch_size": 0}, "proxy.batch_size is 0"),
        ({"loss": "hard", "smooth_real": True}, "choose one of the two"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        ProxyConfig(**settings)
