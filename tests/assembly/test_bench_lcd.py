from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from unifl.assembly.bench_bare_lcd import prepare_bare_lcd
from unifl.assembly.bench_cases import Parts
from unifl.assembly.bench_lcd import AGAINST, _encoded, bench_rg_lcd, beside_script, make_lcd
from unifl.assembly.bench_lcm_script import Draws, LCMScript
from unifl.assembly.bench_record import bench_table, script_table
from unifl.assembly.bench_timing import module_calls, peak_bytes
from unifl.data import Sample
from unifl.errors import UserError
from unifl.feedback import NetworkFeedback, as_feedback
from unifl.feedback.networks import RewardNetwork, SharedTrunk
from unifl.methods.guiding import GuidingConfig
from unifl.methods.lcd_config import LCDConfig
from unifl.metrics.result import read_result
from unifl.sampling import NoGuidance
from unifl.testing import tiny_pipeline
from unifl.training.batches import Layout, draw_micro_batches

ROWS = 4
CASES = {
    "lcd": LCDConfig(),
    "rg-lcd": LCDConfig(rewards=GuidingConfig(weights={"good": 1.0, "warm": 0.5}, batch_size=2)),
}


def _parts(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = RewardNetwork(SharedTrunk((8, 8, 16)).requires_grad_(False))
    rewards = {
        "good": NetworkFeedback(network, name="good"),
        "warm": as_feedback(lambda images, prompts: images[:, 0].mean((1, 2)), name="warm"),
    }
    draws = torch.Generator().manual_seed(1)
    words = ["a red circle", "two cats", "a dog", "a small blue square"]
    pictures = [Sample(torch.rand(3, 32, 32, generator=draws), words[row]) for row in range(ROWS)]
    return Parts(
        name=family,
        pipeline=lambda: tiny_pipeline(family),
        rewards=rewards,
        critics={},
        discriminator=rewards["good"],
        sources={"images": pictures},
    )


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def parts(request):
    return _parts(request.param)


@pytest.fixture(scope="module")
def rows(parts, tmp_path_factory):
    return _encoded(parts, tmp_path_factory.mktemp("rows") / "rows")


def _batch(method, *, step=0):
    return draw_micro_batches(method, Layout(ROWS, 1), seed=3, step=step)[0]


def _stirred(method):
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters["student"]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return method


class Samples:
    """Samples through networks while it is entered, named as by `evaluations`."""

    def __init__(self, networks):
        self.networks, self.found = networks, Counter()

    def _hook(self, name):
        def record(module, inputs, output):
            first = output if isinstance(output, torch.Tensor) else output[0]
            self.found[f"{name} forward+backward" if first.requires_grad else f"{name} forward"] += len(first)

        return record

    def __enter__(self):
        self.handles = [
            network.register_forward_hook(self._hook(name)) for network, name in self.networks.items()
        ]
        return self.found

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def _networks(method):
    generator = method.generator
    unets = {generator.roles.module("unet", role): "unet" for role in ("student", "teacher", "ema")}
    rewards = method.guiding.rewards.items() if method.guiding is not None else ()
    readers = {reward.network: f"reward/{name}" for name, reward in rewards if hasattr(reward, "network")}
    return unets | readers | {generator.pipeline.vae.decoder: "vae decode"}


@pytest.mark.parametrize("name", CASES)
def test_the_bare_side_evaluates_what_the_method_states_and_the_step_does(parts, rows, name):
    method = make_lcd(parts, CASES[name], rows)
    method.generator.encode_negative(None, 1)
    batch = _batch(method)
    bare = prepare_bare_lcd(method, batch)
    with module_calls() as of_step, Samples(_networks(method)) as by_step:
        output = method.step("student", batch)
        torch.stack(list(output.losses.values())).sum().backward()
    with module_calls() as of_bare, Samples(_networks(method)) as by_bare:
        bare()
    assert of_step == of_bare and of_bare.total() > 100
    stated = {kind: count for kind, count in method.evaluations(ROWS).items() if "warm" not in kind}
    assert dict(by_bare) == dict(by_step) == stated
    assert all(parameter.grad is None for parameter in method.parameters["student"])


def test_sdxl_too(tmp_path):
    parts = _parts("sdxl")
    method = make_lcd(parts, CASES["lcd"], _encoded(parts, tmp_path / "rows"))
    batch = _batch(method)
    bare = prepare_bare_lcd(method, batch)
    method.generator.encode_negative(None, 1)
    with module_calls() as of_step:
        method.step("student", batch)
    with module_calls() as of_bare:
        bare()
    assert of_step == of_bare


def test_the_bare_side_computes_the_distance_of_the_method(parts, rows):
    """But for the boundary, which is nearly one at these times, and for the rounded corner of pseudo-Huber."""
    method = _stirred(make_lcd(parts, LCDConfig(huber_c=1e-6), rows))
    batch = _batch(method)
    shape = method.generator.latent_shape
    latents = batch.data["images"].draw(batch.key)
    bare = prepare_bare_lcd(method, batch).loss(latents, batch.key.normal("lcd/noise", shape))
    bare.backward()
    found = [parameter.grad.clone() for parameter in method.parameters["student"]]
    method.generator.pipeline.unet.zero_grad()
    loss = method.step("student", batch).losses["distillation"]
    loss.backward()
    assert float(bare.detach()) == pytest.approx(float(loss.detach()), rel=1e-3)
    expected = [parameter.grad for parameter in method.parameters["student"]]
    norm = torch.nn.utils.get_total_norm(expected)
    assert torch.nn.utils.get_total_norm(torch._foreach_sub(found, expected)) < 0.05 * norm


def test_the_script_computes_the_loss_of_the_method(parts, rows):
    """On equal weights and draws, so the two steps that are timed do equal work."""
    method = make_lcd(parts, LCDConfig(), rows)
    script = LCMScript(parts.pipeline())
    _stirred(method)
    own = method.generator.roles.module("unet", "ema")
    script.student.load_state_dict(method.generator.pipeline.unet.state_dict())
    script.target.load_state_dict(own.state_dict())
    batch, shape = _batch(method), method.generator.latent_shape
    key = batch.key
    draws = Draws(
        posterior=key.normal("posterior", shape),
        noise=key.normal("lcd/noise", shape),
        index=key.integers("lcd/index", 0, 50),
        scale=5 + 10 * key.uniform("lcd/guidance"),
    )
    by_prompt = {sample.prompt: sample.image for sample in parts.sources["images"]}
    prompts = batch.data["images"].prompts
    pictures = torch.stack([by_prompt[prompt] for prompt in prompts]) * 2 - 1
    theirs = script.loss(pictures, prompts, draws)
    ours = method.step("student", batch).losses["distillation"]
    assert float(theirs.detach()) == pytest.approx(float(ours.detach()), rel=1e-5)
    ours.backward()
    theirs.backward()
    found = [parameter.grad for _, parameter in sorted(method.generator.pipeline.unet.named_parameters())]
    expected = [parameter.grad for _, parameter in sorted(script.student.named_parameters())]
    norm = torch.nn.utils.get_total_norm(expected)
    assert torch.nn.utils.get_total_norm(torch._foreach_sub(found, expected)) < 0.02 * norm


def test_the_script_evaluates_as_often_and_encodes_too(parts, rows):
    method = make_lcd(parts, LCDConfig(), rows)
    script = LCMScript(parts.pipeline())
    step = beside_script(script, parts, _batch(method))
    unets = dict.fromkeys((script.student, script.target, script.pipeline.unet), "unet")
    networks = unets | {script.pipeline.vae.encoder: "vae encode", script.pipeline.text_encoder: "text"}
    with Samples(networks) as found:
        step()
    assert found.pop("vae encode forward") == found.pop("text forward") == ROWS
    assert dict(found) == method.evaluations(ROWS)
    before = [parameter.clone() for parameter in script.student.parameters()]
    average = [parameter.clone() for parameter in script.target.parameters()]
    step()
    moved = [not torch.equal(a, b) for a, b in zip(before, script.student.parameters(), strict=True)]
    assert all(moved)
    for old, new, own in zip(average, script.target.parameters(), script.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * own.detach())


def test_rows_in_another_order_are_refused(parts, rows):
    method = make_lcd(parts, LCDConfig(), rows)
    other = Parts(**(vars(parts) | {"sources": {"images": parts.sources["images"][::-1]}}))
    with pytest.raises(UserError, match="would see other rows"):
        beside_script(LCMScript(parts.pipeline()), other, _batch(method))


def test_bytes_are_those_held_and_those_passing():
    held, idle = torch.ones(1000), torch.ones(500)
    # the input, the idle one, and at most two results at once
    assert peak_bytes(lambda: (held * 2) * 3, [idle]) == 4 * (1000 + 500 + 2 * 1000)


def test_a_bench_of_two_pairs(tmp_path):
    parts, lines = _parts("sd15"), []
    record = bench_rg_lcd(
        tmp_path, source=parts, cases=CASES, pairs=2, batch_size=ROWS, progress=lines.append
    )
    assert record == json.loads((tmp_path / "timings.json").read_text())
    entries = {row.id: row for row in read_result(tmp_path / "result.json").bench}
    assert list(entries) == ["lcd", "rg-lcd", AGAINST] == [line.split(":")[0] for line in lines]
    *bare, against = record["cases"]
    for case in bare:
        assert case["beyond_evaluations"] == 0 and len(case["pairs"]) == 2
        assert all(0 < pair["ema"] < pair["whole"] and pair["optimizer"] > 0 for pair in case["pairs"])
        assert 0.3 < entries[case["id"]].ratio < 10
    assert entries["rg-lcd"].evaluations["vae decode forward+backward"] == 2
    assert entries[AGAINST].evaluations == entries["lcd"].evaluations
    for pair in against["pairs"]:
        assert pair["ratio"] == pair["script"] / pair["step"]
    # three UNets and two moments of one on either side, and all that they hold beside them
    unet = sum(4 * parameter.numel() for parameter in parts.pipeline().unet.parameters())
    assert all(5 * unet < number < 50 * unet for number in against["memory"].values())
    assert against["memory"]["step"] <= against["memory"]["script"]
    assert bench_table(record).row_count == 2 and script_table(record).row_count == 1


def test_what_has_no_bare_counterpart_is_refused(parts, rows):
    for config, message in (
        (LCDConfig(guidance=NoGuidance()), "a teacher without guidance"),
        (LCDConfig(target="student"), "lcd.target=student"),
    ):
        method = make_lcd(parts, config, rows)
        with pytest.raises(UserError, match=f"no bare counterpart of {message}"):
            prepare_bare_lcd(method, _batch(method))
