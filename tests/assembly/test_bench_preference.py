"""The benchmark of preference optimisation: both sides do the same work, and the script's loss is the method's."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from unifl.assembly import bench_shaped
from unifl.assembly.bench_cases import Parts
from unifl.assembly.bench_dpo_script import DPOScript, Draws
from unifl.assembly.bench_preference import (
    AGAINST,
    PAIRS,
    RANK,
    bench_preference,
    beside_script,
    make_preference,
    preference_cases,
    prepare_bare_dpo,
)
from unifl.assembly.bench_shaped import shaped_parts
from unifl.assembly.bench_timing import module_calls
from unifl.cli import app
from unifl.data import Sample
from unifl.data.encode import encode_source
from unifl.errors import UserError
from unifl.methods.objectives import DPO
from unifl.methods.preference import PreferenceConfig
from unifl.models import make_generator
from unifl.testing import tiny_pipeline
from unifl.training.batches import Layout, draw_micro_batches

ROWS = 6
WORDS = ["a red circle", "two cats", "a dog"]


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def parts(request):
    draws = torch.Generator().manual_seed(1)
    pictures = [Sample(torch.rand(3, 32, 32, generator=draws), WORDS[row // 2]) for row in range(ROWS)]
    return Parts(
        name=request.param,
        pipeline=lambda: tiny_pipeline(request.param),
        rewards={},
        critics={},
        discriminator=None,
        sources={"images": pictures},
    )


@pytest.fixture(scope="module")
def rows(parts, tmp_path_factory):
    generator = make_generator(parts.pipeline(), roles=(), source=parts.name)
    return encode_source(generator, parts.sources["images"], tmp_path_factory.mktemp("rows"), with_text=True)


def batch_of(method, step=0):
    return draw_micro_batches(method, Layout(2, 1), seed=3, step=step)[0]


@pytest.mark.parametrize("name", ["dpo", "ncp-dpo"])
def test_the_bare_side_makes_the_calls_of_the_step(parts, rows, name):
    method = make_preference(parts, preference_cases()[name], rows)
    batch = batch_of(method)
    bare = prepare_bare_dpo(method, batch)
    with module_calls() as of_step:
        sum(method.step("student", batch).losses.values()).backward()
    with module_calls() as of_bare:
        bare()
    assert of_step == of_bare and of_bare.total() > 100
    assert all(parameter.grad is None for parameter in method.parameters["student"])


@pytest.mark.parametrize("name", ["dpo", "ncp-dpo"])
def test_the_bare_side_evaluates_what_the_method_states(parts, rows, name):
    """Samples through the UNet, and through its first layer alone where the encoder is asked."""
    method = make_preference(parts, preference_cases()[name], rows)
    bare = prepare_bare_dpo(method, batch_of(method))
    unet, found = method.generator.pipeline.unet, Counter()

    def whole(module, inputs, output):
        found["unet forward+backward" if output[0].requires_grad else "unet forward"] += len(output[0])

    handles = [
        unet.register_forward_hook(whole),
        unet.conv_in.register_forward_hook(lambda *given: found.update({"first layer": len(given[2])})),
    ]
    bare()
    for handle in handles:
        handle.remove()
    stated = method.evaluations(2)
    assert found.pop("first layer") == sum(stated.values())
    assert dict(found) == {kind: n for kind, n in stated.items() if "encoder" not in kind}


@pytest.mark.parametrize("name", ["dpo", "ncp-dpo"])
def test_the_gradient_of_the_bare_side_reaches_every_adapter(parts, rows, name):
    method = make_preference(parts, preference_cases()[name], rows)
    reached = set()
    for number, parameter in enumerate(method.parameters["student"]):
        parameter.register_hook(lambda _, number=number: reached.add(number))
    prepare_bare_dpo(method, batch_of(method))()
    assert len(reached) == len(method.parameters["student"]) > 0


def test_the_script_computes_the_loss_of_the_method(parts, rows):
    """On equal draws, with adapters moved alike; the script's beta is half of ours."""
    method = make_preference(parts, PreferenceConfig(objective=DPO(beta=200.0)), rows)
    script = DPOScript(parts.pipeline(), rank=RANK, beta=100.0)
    draws = torch.Generator().manual_seed(2)
    own = {_short(name): p for name, p in method.generator.trainable_parameters().items()}
    theirs = {_short(name): p for name, p in script.pipeline.unet.named_parameters() if p.requires_grad}
    assert own.keys() == theirs.keys()
    with torch.no_grad():
        for name in sorted(own):
            own[name].copy_(0.3 * torch.randn(own[name].shape, generator=draws))
            theirs[name].copy_(own[name])
    batch = batch_of(method)
    key, generator = batch.key, method.generator
    ours = float(method.step("student", batch).losses["preference"].detach())
    shape = generator.latent_shape
    given = Draws(
        posterior=key.normal("posterior", shape).repeat(2, 1, 1, 1),
        noise=key.normal("surrogate/noise", shape),
        index=key.integers("surrogate/time", 1, generator.num_train_timesteps + 1) - 1,
    )
    sides = [getattr(pair, side) for side in ("win", "lose") for pair in batch.data[PAIRS]]
    by_mean = {float(rows[row].mean.sum()): parts.sources["images"][row].image for row in range(ROWS)}
    pictures = torch.stack([by_mean[float(side.mean.sum())] for side in sides]) * 2 - 1
    script.pipeline.unet.eval()
    loss = float(script.loss(pictures, [pair.prompt for pair in batch.data[PAIRS]], given).detach())
    assert ours == pytest.approx(loss, rel=1e-5)
    assert abs(loss - 0.6931) > 1e-3  # the student has moved: this is no comparison of constants


def _short(name):
    return name.split("unet.")[-1].replace(".student", "").replace(".default", "").replace(".weight", "")


def test_a_short_run_writes_its_record(parts, tmp_path):
    record = bench_preference(tmp_path, source=parts, pairs=2, batch_size=2)
    assert [case["id"] for case in record["cases"]] == ["dpo", "ncp-dpo", AGAINST]
    assert json.loads((tmp_path / "timings.json").read_text())["cases"] == json.loads(
        json.dumps(record["cases"])
    )
    against = record["cases"][-1]
    assert against["ratio"] > 0 and 0 < against["memory"]["step"] <= against["memory"]["script"]
    for case in record["cases"][:-1]:
        assert case["beyond_evaluations"] == 0 and len(case["pairs"]) == 2
        assert all(0 < pair["optimizer"] < pair["whole"] and pair["bare"] > 0 for pair in case["pairs"])
    assert all(pair["ratio"] == pair["script"] / pair["step"] for pair in against["pairs"])
    assert record["cases"][1]["evaluations"]["unet encoder forward+backward"] == 4


def test_the_script_sees_the_rows_of_the_step(parts, rows):
    method = make_preference(parts, PreferenceConfig(), rows)
    seen = []

    class Watched(DPOScript):
        def step(self, pictures, prompts):
            seen.append((pictures, prompts))

    batch = batch_of(method)
    beside_script(Watched(parts.pipeline()), parts, batch)()
    assert seen[0][1] == [pair.prompt for pair in batch.data[PAIRS]] and len(seen[0][0]) == 4


def test_rows_in_another_order_are_refused(parts, rows):
    method = make_preference(parts, PreferenceConfig(), rows)
    other = Parts(**(vars(parts) | {"sources": {"images": parts.sources["images"][::-1]}}))
    with pytest.raises(UserError, match="would see other rows; the order of rows has changed, so follow it"):
        beside_script(DPOScript(parts.pipeline()), other, batch_of(method))


def test_a_step_of_the_script_moves_its_adapters_alone(parts):
    script = DPOScript(parts.pipeline(), learning_rate=1e-3)
    before = {name: p.clone() for name, p in script.pipeline.unet.named_parameters()}
    draws = torch.Generator().manual_seed(4)
    script.step(torch.rand(4, 3, 32, 32, generator=draws) * 2 - 1, WORDS[:2])
    moved = {name for name, p in script.pipeline.unet.named_parameters() if not torch.equal(p, before[name])}
    # A too, although B starts at 0 and leaves it without a gradient: weights decay
    assert moved == {name for name in before if "lora" in name} != set()
    assert all(p.grad is None for p in script.pipeline.unet.parameters())


@pytest.mark.slow
def test_the_command_measures_a_narrow_model(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_shaped, "shaped_parts", partial(shaped_parts, narrower=8, side=64))
    sizes = ["--pairs", "2", "--batch-size", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", "preference", "--shapes", "sd15", *sizes])
    assert result.exit_code == 0, result.output
    cases = json.loads((tmp_path / "timings.json").read_text())["cases"]
    assert [case["id"] for case in cases] == ["dpo", "ncp-dpo", AGAINST]
