from __future__ import annotations

import json

import pytest
import torch

from unifl.assembly.bench import bench_unifl
from unifl.assembly.bench_bare import prepare_bare
from unifl.assembly.bench_cases import Parts, make_method, published_cases
from unifl.assembly.bench_record import LIMIT, bench_table
from unifl.assembly.bench_timing import median_interval, module_calls
from unifl.data import Sample
from unifl.errors import UserError
from unifl.feedback import LayoutCritic, NetworkFeedback, StructureCritic, StyleCritic, as_feedback
from unifl.feedback.networks import RewardNetwork, SegmentationNetwork, SharedTrunk, SoloNetwork, StyleNetwork
from unifl.methods.adversarial import AdversarialConfig
from unifl.methods.anchors import AnchorConfig
from unifl.methods.refl import ReFLConfig
from unifl.methods.unifl_config import AestheticConfig, PerceptualConfig, UniFLConfig
from unifl.metrics.result import read_result
from unifl.sampling import FixedGuidance
from unifl.testing import tiny_pipeline
from unifl.training.batches import Layout, draw_micro_batches

SIDE = 32
PROMPTS = ["a red circle", "two cats", "a dog", "a small blue square"]
LEVELS = {"color": 1.0, "detail": 1.0}


@pytest.fixture(scope="module")
def parts():
    return _parts("sd15")


def _parts(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = SharedTrunk((8, 8, 16)).requires_grad_(False)
        rewards = {axis: NetworkFeedback(RewardNetwork(trunk), name=axis) for axis in LEVELS}
        rewards["warm"] = as_feedback(lambda images, prompts: images[:, 0].mean((1, 2)), name="warm")
        critics = {
            "structure": StructureCritic(SoloNetwork(SharedTrunk((8, 8, 16)), 3)),
            "layout": LayoutCritic(SegmentationNetwork(SharedTrunk((8, 8, 16)), 3)),
            "style": StyleCritic(StyleNetwork(SharedTrunk((8, 8, 16)), 3)),
        }
    return Parts(
        name=family,
        pipeline=lambda: tiny_pipeline(family),
        rewards=rewards,
        critics=critics,
        discriminator=rewards["detail"],
        sources={"images": [_sample(index) for index in range(len(PROMPTS))], "prompts": PROMPTS},
    )


def _sample(index):
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[0, 8 : 16 + 4 * index, 8:20] = True
    image = torch.full((3, SIDE, SIDE), 0.2)
    image[index % 3, mask[0]] = 0.9
    return Sample(image, PROMPTS[index], mask, torch.tensor([index % 2]), torch.where(mask[0], index % 3, 2))


def _aesthetic(**settings):
    return AestheticConfig(**{"num_steps": 3, "stop": (0, 1), "levels": LEVELS} | settings)


def _perceptual(**settings):
    weights = dict.fromkeys(("structure", "layout", "style"), 0.01)
    return PerceptualConfig(**{"num_steps": 6, "start": 3, "stop": (0, 1), "weights": weights} | settings)


SMALL = {
    "refl": ReFLConfig(num_steps=3, stop=(0, 1), reward="color"),
    "unifl-stage1": UniFLConfig(perceptual=_perceptual(), aesthetic=_aesthetic()),
    "unifl-stage2": UniFLConfig(adversarial=AdversarialConfig(num_steps=3), aesthetic=_aesthetic()),
}

GUIDED = {"guidance": FixedGuidance(scale=2.0), "grad_guidance": None, "spacing": "trailing"}
OTHERS = {
    "guided": UniFLConfig(perceptual=_perceptual(gt_source="pseudo", **GUIDED)),
    "shared": UniFLConfig(
        adversarial=AdversarialConfig(num_steps=3, loss="bounded", real="reconstruction"),
        aesthetic=_aesthetic(stop=None, source="images"),
    ),
    "frozen": UniFLConfig(adversarial=AdversarialConfig(num_steps=3, train_discriminator=False)),
    "function": ReFLConfig(num_steps=3, stop=(0, 1), reward="warm"),
}


def _both(parts, config, *, step=0):
    """Calls of elementary modules in a step of the method, and in its bare counterpart."""
    method = make_method(parts, config)
    method.generator.encode_prompts(PROMPTS)
    method.generator.encode_negative(None, 1)
    batch = draw_micro_batches(method, Layout(2, 1), seed=3, step=step)[0]
    bare = prepare_bare(method, batch)
    with module_calls() as of_step:
        for update in method.updates:
            torch.stack(list(method.step(update, batch).losses.values())).sum().backward()
    with module_calls() as of_bare:
        bare()
    return method, of_step, of_bare


@pytest.mark.parametrize("name", [*SMALL, *OTHERS])
def test_the_bare_side_evaluates_exactly_what_the_step_does(parts, name):
    for step in range(2):  # another stop
        _, of_step, of_bare = _both(parts, (SMALL | OTHERS)[name], step=step)
        assert of_step == of_bare and of_bare.total() > 100


@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_other_families_too(family):
    _, of_step, of_bare = _both(_parts(family), SMALL["refl"])
    assert of_step == of_bare


def test_the_bare_side_computes_the_same_picture(parts):
    method = make_method(parts, SMALL["refl"])
    batch = draw_micro_batches(method, Layout(2, 1), seed=3, step=0)[0]
    shown = method.step("student", batch).previews["aesthetic"]
    bare = prepare_bare(method, batch).pictures[0]
    noise = batch.key.normal("aesthetic/noise", method.generator.latent_shape)
    from unifl.assembly import bench_bare

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_bare.torch, "randn", lambda shape: noise)
        drawn = bench_bare.draw(method.generator.pipeline, bare)
    assert drawn.requires_grad
    assert torch.allclose(drawn.clamp(0, 1), shown, atol=1e-4)


def test_gradients_of_the_bare_side_reach_what_trains_and_nothing_stays(parts):
    method, _, _ = _both(parts, SMALL["unifl-stage2"])
    seen = []
    student, judge = method.parameters["student"], method.parameters["discriminator"]
    handles = [
        student[0].register_hook(lambda _: seen.append("student")),
        judge[0].register_hook(lambda _: seen.append("discriminator")),
    ]
    bare = prepare_bare(method, draw_micro_batches(method, Layout(2, 1), seed=3, step=1)[0])
    bare()
    for handle in handles:
        handle.remove()
    assert sorted(seen) == ["discriminator", "student"]
    assert all(p.grad is None and p.requires_grad for p in [*student, *judge])


def test_a_bench_of_three_pairs(parts, tmp_path):
    lines = []
    record = bench_unifl(tmp_path, source=parts, cases=SMALL, pairs=3, batch_size=2, progress=lines.append)
    assert record == json.loads((tmp_path / "timings.json").read_text())
    assert set(record) >= {"machine", "versions", "commit", "settings", "limit"} and record["limit"] == LIMIT
    entries = {row.id: row for row in read_result(tmp_path / "result.json").bench}
    assert list(entries) == [case["id"] for case in record["cases"]] == list(SMALL) and len(lines) == 3
    for case in record["cases"]:
        entry, pairs = entries[case["id"]], case["pairs"]
        assert len(pairs) == 3 and case["beyond_evaluations"] == 0
        assert entry.low <= entry.ratio <= entry.high
        assert entry.ratio == sorted(pair["ratio"] for pair in pairs)[1]
        assert all(0 < pair["optimizer"] < pair["whole"] and pair["bare"] > 0 for pair in pairs)
        # the step holds everything that the bare side does
        assert 0.3 < entry.ratio < 10
        assert all(0 < case["seconds"][name] < 60 for name in ("step", "bare", "optimizer", "ema"))
    stage_1 = record["cases"][1]
    assert set(stage_1["pairs"][0]["stops"]) == {"perceptual", "aesthetic"}
    # 2 rows: 1.5 evaluations before the graded one from a picture, 1.5 from noise
    assert entries["unifl-stage1"].evaluations["unet forward"] == 2 * (1.5 + 1.5)
    assert bench_table(record).row_count == 3


def test_the_interval_is_of_the_median_over_pairs():
    value, low, high = median_interval([1.0, 1.1, 1.2, 1.0, 9.0])
    assert value == 1.1 and 1.0 <= low <= value <= high
    assert median_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_published_cases_have_the_papers_schedules():
    cases = published_cases()
    assert cases["unifl-stage1"].perceptual.evaluations(start=10) == (6.5, 1.0)
    assert cases["unifl-stage1"].aesthetic.evaluations() == (16.5, 1.0)
    assert cases["unifl-stage2"].adversarial.evaluations() == (9.5, 1.0)
    assert cases["refl"].evaluations() == (34.5, 1.0)


def test_errors(parts, tmp_path):
    with pytest.raises(UserError, match="pairs is 1; an interval over pairs needs at least 2"):
        bench_unifl(tmp_path, source=parts, pairs=1)
    with pytest.raises(UserError, match="batch_size is 0; it must be at least 1"):
        bench_unifl(tmp_path, source=parts, batch_size=0)
    anchored = ReFLConfig(num_steps=3, stop=(0, 1), reward="color", anchors=AnchorConfig(distance_weight=1.0))
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json cannot be read as JSON"):  # before anything is timed
        bench_unifl(tmp_path, source=parts, cases={"anchored": anchored}, pairs=2)
    (tmp_path / "result.json").unlink()
    with pytest.raises(UserError, match="no bare counterpart of anchors"):
        bench_unifl(tmp_path, source=parts, cases={"anchored": anchored}, pairs=2)
