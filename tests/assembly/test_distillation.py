"""Distillation from a recipe: cached pictures, buckets, a proxy and its expert, and what the finished model says."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from PIL import Image

from unifl.assembly.build import assemble
from unifl.assembly.open_model import open_model
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.data.encoded import EncodedPictures
from unifl.errors import UserError
from unifl.feedback import LatentProxyConfig, make_proxy, save_proxy
from unifl.models.load import load_pipeline
from unifl.training.batches import Layout, draw_micro_batches

CACHED = "{kind: pictures, folder: plain, encode: {folder: cache, rows_per_shard: 3}}"


def recipe(*changes, images=CACHED, full=True):
    text = f"""
output_dir: run
model:
  pretrained_model_name_or_path: tiny
  train: {"{kind: full, embed_guidance: true}" if full else "{kind: lora, rank: 2}"}
method:
  kind: lcd
  guidance: {{kind: range, low: 2.0, high: 4.0}}
data:
  images: {images}
training:
  max_train_steps: 2
  train_batch_size: 2
  ema_decay: 0.95
sampling: {{num_steps: 2, guidance: 3.0, consistency: {{kind: lcm}}}}
"""
    return load_recipe(text, changes)


def test_pictures_are_encoded_once_and_give_the_same_run(workspace):
    """The second run finds the cache; one that encodes in every step has the same losses."""
    seen = {}
    for name, images in (
        ("cached", CACHED),
        ("again", CACHED),
        ("live", "{kind: pictures, folder: plain}"),
    ):
        losses = seen.setdefault(name, [])
        run_recipe(
            recipe(f"output_dir={name}", images=images),
            progress=False,
            on_step=lambda step, kept=losses: kept.append(step.losses),
        )
    assert seen["cached"] == seen["again"]
    for cached, live in zip(seen["cached"], seen["live"], strict=True):
        assert cached["student/distillation"] == pytest.approx(live["student/distillation"], rel=1e-4)
    assert (
        len(EncodedPictures(workspace / "cache")) == 4
        and len(list((workspace / "cache").glob("*.safetensors"))) == 2
    )


def test_a_cache_of_another_model_is_refused(workspace):
    run_recipe(recipe(), progress=False)
    pipeline = load_pipeline(workspace / "tiny")
    with torch.no_grad():
        pipeline.vae.encoder.conv_in.weight.mul_(1.5)
    pipeline.save_pretrained(workspace / "other")
    with pytest.raises(UserError, match=r"cache.*(another|other) "):
        assemble(recipe("model.pretrained_model_name_or_path=other", "output_dir=second"))


def test_buckets_give_batches_of_one_shape(workspace):
    folder = workspace / "wide"
    folder.mkdir()
    rows = []
    for number in range(6):
        size = (64, 32) if number % 2 else (32, 64)
        Image.new("RGB", size, (40 * number, 90, 20)).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"number {number}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shapes = "{multiple: 8, max_aspect: 2.0}"
    built = assemble(recipe(images=f"{{kind: pictures, folder: wide, buckets: {shapes}}}"))
    found = set()
    for step in range(6):
        (batch,) = draw_micro_batches(built.method, Layout(2, 1), seed=0, step=step)
        height, width = batch.data["images"].images.shape[-2:]
        found.add((height, width))
        odd = {int(prompt.split()[-1]) % 2 for prompt in batch.data["images"].prompts}
        assert odd == ({0} if height > width else {1})  # odd ones are wide
        assert torch.isfinite(built.method.step("student", batch).losses["distillation"])
    assert len(found) == 2


def test_some_captions_are_left_out(workspace):
    kept = []
    for dropout in ("0.0", "1.0"):
        built = assemble(recipe(images=f"{{kind: pictures, folder: plain, caption_dropout: {dropout}}}"))
        (batch,) = draw_micro_batches(built.method, Layout(2, 1), seed=0, step=0)
        kept.append(batch.data["images"].prompts)
    assert all(kept[0]) and not any(kept[1])


def write_proxy(workspace):
    vae = load_pipeline(workspace / "tiny").vae.config
    shape = {"channels": 4, "size": 8, "width": 16, "depth": 2, "heads": 2, "patch": 2, "text": "hashed"}
    save_proxy(make_proxy(LatentProxyConfig(scaling_factor=vae.scaling_factor, **shape)), workspace / "proxy")


def test_a_proxy_follows_a_black_box(workspace):
    """JPEG's size, which has no gradient, as the expert: both networks train, and the checkpoint holds the proxy."""
    write_proxy(workspace)
    changes = [
        "method.proxy={temperature: 0.1, batch_size: 2}",
        "proxy=proxy",
        "expert=unifl.feedback.black_box:JpegSize",
        "training.optimizers={proxy: {learning_rate: 1e-3}}",
    ]
    numbers = {}
    run_recipe(recipe(*changes), progress=False, on_step=lambda step: numbers.update(step.numbers()))
    assert {"loss/student/reward/proxy", "loss/proxy/kl", "proxy/agreement", "expert/student"} <= set(numbers)
    modules = (workspace / "run" / "checkpoint-2" / "modules.safetensors").stat().st_size
    assert modules > 10_000
    with pytest.raises(UserError, match=r"method\.proxy is not set"):
        assemble(recipe("proxy=proxy", "output_dir=second"))
    with pytest.raises(UserError, match="no proxy was given"):
        assemble(recipe("method.proxy={}", "output_dir=third"))
    with pytest.raises(UserError, match="follows an expert; name one"):
        assemble(recipe("method.proxy={}", "proxy=proxy", "output_dir=fourth"))


def test_a_saved_proxy_is_a_reward_too(workspace):
    """On latents, with a gradient, and it stays as it is while a second copy follows an expert."""
    write_proxy(workspace)
    built = assemble(
        recipe(
            "rewards={match: proxy}",
            "method.rewards={weights: {match: 0.5}}",
            "method.proxy={temperature: 0.1, batch_size: 2, image_blocks: null}",
            "proxy=proxy",
            "expert=unifl.feedback.black_box:JpegSize",
        )
    )
    match, follower = built.rewards["match"], built.method.proxy.proxy
    assert match.space == "latent" and match is not follower
    assert not any(parameter.requires_grad for parameter in match.parameters())
    assert any(parameter.requires_grad for parameter in follower.parameters())
    (batch,) = draw_micro_batches(built.method, Layout(2, 1), seed=0, step=0)
    found = built.method.step("student", batch)
    assert found.losses["reward/match"].item() == pytest.approx(-0.5 * found.metrics["reward/match"].item())
    weight = built.method.parameters["student"][-1]
    (gradient,) = torch.autograd.grad(found.losses["reward/match"], weight)
    assert gradient.abs().max() > 0


def test_the_finished_model_carries_its_scheduler_and_says_what_it_was_made_for(workspace):
    run_recipe(recipe(), progress=False)
    pipeline = DiffusionPipeline.from_pretrained(workspace / "run" / "model")
    assert isinstance(pipeline.scheduler, LCMScheduler)
    assert pipeline.unet.config.time_cond_proj_dim == 256
    card = (workspace / "run" / "model" / "README.md").read_text()
    assert "LCMScheduler.from_config" in card and "original_inference_steps=50" in card
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_model(workspace / "run")
    assert opened.sampling.consistency is not None and opened.generator.embeds_guidance()
    with pytest.warns(UserWarning, match="distilled for 1 to 8 steps and is sampled with 20"):
        open_model(workspace / "run", num_steps=20)
    with pytest.warns(UserWarning, match="distilled for guidance 2 to 4 and is sampled with 9"):
        open_model(workspace / "run", guidance=9.0)
    with pytest.raises(UserError, match="choose 1 to 50, the points of the grid"):
        open_model(workspace / "run", num_steps=60)


def test_a_lora_has_its_guidance_built_in(workspace):
    run_recipe(recipe("method.target=student", "sampling.guidance=1.0", full=False), progress=False)
    with pytest.warns(UserWarning, match="distilled for guidance 1 to 2 .* which guides a second time"):
        open_model(workspace / "run", guidance=7.0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{kind: pictures}", "one of folder, shards, hub and source, and none is given"),
        ("{kind: pictures, folder: a, hub: b}", "folder and hub is given"),
        ("{kind: pictures, source: 'world:scenes', buckets: {}}", "buckets need files of pictures"),
        ("{kind: pictures, folder: a, caption_dropout: 2.0}", "caption_dropout is 2.0"),
        ("{kind: pictures, folder: nowhere}", "data.images: there is no folder nowhere"),
        ("{kind: pictures, shards: 'none-*.tar'}", "data.images: "),
    ],
)
def test_data_that_makes_no_sense(workspace, images, message):
    with pytest.raises(UserError, match=message):
        assemble(recipe(images=images))


def test_a_student_goes_on_from_an_earlier_one(workspace):
    """It has the finished student's weights, and so has its average; the teacher is what both came from."""
    run_recipe(recipe("training.learning_rate=0.05", "output_dir=first"), progress=False)
    built = assemble(recipe("model.student=first", "output_dir=second"))
    generator = built.generator
    first, start = load_pipeline(workspace / "first" / "model"), load_pipeline(workspace / "tiny")
    name, component = "conv_in.weight", "unet"
    before, after = (getattr(pipeline, component).get_parameter(name) for pipeline in (start, first))
    assert not torch.equal(before, after)
    assert torch.equal(generator.roles.parameters("student")[f"{component}.{name}"], after)
    assert torch.equal(generator.roles.parameters("ema")[f"{component}.{name}"], after)
    assert torch.equal(generator.roles.parameters("teacher")[f"{component}.{name}"], before)
    assert generator.embeds_guidance("student") and not generator.embeds_guidance("teacher")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("model.student=tiny",),
            "does not have the shape of the student, first at unet.time_embedding.cond",
        ),
        (("model.student=nowhere/at/all",), "no model at nowhere/at/all"),
    ],
)
def test_another_student_is_refused(workspace, changes, message):
    with pytest.raises(UserError, match=message):
        assemble(recipe(*changes))


def test_a_lora_has_no_student_of_its_own(workspace):
    with pytest.raises(UserError, match=r"a LoRA that training starts from is named by model\.lora"):
        recipe("model.student=tiny", full=False)
