"""A plan from shapes against a step of the real networks, counted by other means."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from unifl.data import Pair, Sample
from unifl.feedback import LayoutCritic, NetworkFeedback
from unifl.feedback.networks import RewardNetwork, SegmentationNetwork, SharedTrunk
from unifl.methods.pictures import DecodeConfig
from unifl.methods.preference import Preference, PreferenceConfig
from unifl.methods.spaces import NCPConfig
from unifl.methods.unifl import UniFL
from unifl.methods.unifl_config import AdversarialConfig, AestheticConfig, PerceptualConfig, UniFLConfig
from unifl.models import FullTraining, LoraTraining, make_generator
from unifl.testing import tiny_pipeline
from unifl.training.batches import Layout, draw_micro_batches
from unifl.training.config import TrainingConfig
from unifl.training.plan import plan
from unifl.training.stand_in import stand_ins

SIDE = 64
HOW = {"lora": LoraTraining(rank=4), "full": FullTraining()}


def _narrow_sdxl(width=1):
    """SDXL's layout, a tenth as wide (times `width`) and with a level less."""
    pipeline = tiny_pipeline("sdxl")
    text = pipeline.unet.config.cross_attention_dim
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32 * width, 64 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=text,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + text // 2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    pipeline.register_modules(unet=unet.eval(), vae=vae.eval())
    return pipeline


def _method(how, *, shapes, checkpointing, stage=1, mixed_precision="no", width=1):
    pipeline = _narrow_sdxl(width)
    if shapes:
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            getattr(pipeline, name).to("meta")
    generator = make_generator(pipeline, train=HOW[how], resolution=SIDE, mixed_precision=mixed_precision)
    rollout = {"num_steps": 3, "stop": (0, 1)}
    config = UniFLConfig(
        perceptual=PerceptualConfig(weights={"layout": 1.0}, start=2, **rollout) if stage == 1 else None,
        adversarial=AdversarialConfig(num_steps=3, loss="bounded") if stage == 2 else None,
        aesthetic=AestheticConfig(levels={"detail": 1.0}, weight=1.0, **rollout),
        decode=DecodeConfig(checkpoint=checkpointing, slicing=checkpointing),
    )
    reward = NetworkFeedback(RewardNetwork(), name="detail")
    sample = Sample(
        torch.full((3, SIDE, SIDE), 0.5), "a cat", semantic=torch.zeros(SIDE, SIDE, dtype=torch.int64)
    )
    method = UniFL(
        generator,
        config,
        rewards={"detail": reward},
        critics={"layout": LayoutCritic(SegmentationNetwork(SharedTrunk(), 5))},
        sources={"images": [sample] * 2, "prompts": ["a cat", "a dog"]},
        discriminator=reward,
    )
    if checkpointing:
        generator.enable_gradient_checkpointing()
    return method


def _saved_bytes(method, config):
    """Distinct storages that autograd keeps in the student's step, without those of any network's weights."""
    networks = [*method.generator.modules().values(), *method.modules.values()]
    networks += [reward.network for reward in method.rewards.values()]
    networks += [critic.network for critic in method.critics.values()]
    weights = {t.untyped_storage()._cdata for n in networks for t in (*n.parameters(), *n.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    batch = draw_micro_batches(method, Layout(config.train_batch_size, 1), seed=config.seed, step=0)[0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = method.step("student", batch)
    assert output.losses
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("how", "checkpointing"),
    [
        ("lora", True),
        ("full", False),
        pytest.param("lora", False, marks=pytest.mark.slow),
        pytest.param("full", True, marks=pytest.mark.slow),
    ],
)
def test_a_plan_from_shapes_is_within_15_percent_of_a_real_step(how, checkpointing):
    config = TrainingConfig(train_batch_size=2, ema_decay=0.9)
    planned = plan(_method(how, shapes=True, checkpointing=checkpointing), config)
    method = _method(how, shapes=False, checkpointing=checkpointing)
    kept = _saved_bytes(method, config)
    assert sum(planned.activations.values()) == pytest.approx(kept, rel=0.15)
    parameters = {
        name: sum(p.nbytes for p in n.parameters()) for name, n in method.generator.modules().items()
    }
    lora = sum(p.nbytes for p in method.parameters["student"]) if how == "lora" else 0
    for name, size in parameters.items():
        found = planned.memory[f"weights, {name}"] + (lora if name == "unet" else 0)
        assert found == pytest.approx(size, rel=0.01)
    assert planned.memory.get("weights, LoRA", 0) == lora
    assert planned.memory["weights, ema"] == planned.gradients
    assert planned.gradients == sum(p.nbytes for p in method.parameters["student"])

    real = plan(method, config)  # the dry run of the networks themselves: also its peak
    assert planned.total_memory == pytest.approx(real.total_memory, rel=0.15)
    assert planned.memory["optimizers"] == real.memory["optimizers"]
    assert planned.available is None and real.available is not None
    assert set(planned.activations) == set(real.activations)
    for part, size in planned.activations.items():
        assert size == pytest.approx(real.activations[part], rel=0.15)


@pytest.mark.parametrize(
    ("stage", "accumulation"), [(1, 2), (2, 1), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_gradients_of_all_weights_count_once(stage, accumulation):
    """Stage 2 has two rollouts of the student in one graph here; later micro-batches add to what is there."""
    config = TrainingConfig(train_batch_size=1, gradient_accumulation_steps=accumulation)
    found = [
        plan(_method("full", shapes=shapes, checkpointing=True, stage=stage, width=4), config)
        for shapes in (True, False)
    ]
    planned, real = (plan.memory["gradients and activations"] for plan in found)
    assert found[0].gradients > 0.3 * real  # they count for much here
    assert planned == pytest.approx(real, rel=0.05)


@pytest.mark.slow
def test_the_second_stage_and_half_precision_agree_too():
    config = TrainingConfig(train_batch_size=1, gradient_accumulation_steps=2, mixed_precision="bf16")
    found = [
        plan(_method("lora", shapes=shapes, checkpointing=True, stage=2, mixed_precision="bf16"), config)
        for shapes in (True, False)
    ]
    assert found[0].total_memory == pytest.approx(found[1].total_memory, rel=0.15)
    assert found[0].memory["weights, discriminator"] == found[1].memory["weights, discriminator"]
    assert found[0].trained == found[1].trained
    assert found[0].evaluations == found[1].evaluations


@pytest.mark.slow
def test_checkpointing_saves_activations_and_the_plan_says_where():
    config = TrainingConfig(train_batch_size=2)
    without, with_it = (
        plan(_method("lora", shapes=True, checkpointing=checkpointing), config).activations
        for checkpointing in (False, True)
    )
    assert with_it["denoiser"] < 0.5 * without["denoiser"]
    # one picture at a time, the decoder keeps latents alone
    assert with_it.get("decoder", 0) < 0.01 * without["decoder"]


@pytest.mark.slow
def test_norms_count_in_float32_on_a_gpu_where_precision_is_mixed():
    config = TrainingConfig(train_batch_size=1)

    def kept(precision, for_gpu):
        method = _method("lora", shapes=True, checkpointing=False, mixed_precision=precision)
        return plan(method, config, for_gpu=for_gpu).activations["denoiser"]

    assert kept("bf16", True) > 1.1 * kept("bf16", False)
    assert kept("no", True) == kept("no", False)


def test_networks_are_put_back_and_those_with_weights_are_left_alone():
    generator = _method("lora", shapes=True, checkpointing=False).generator
    before = generator.pipeline.unet.forward
    with stand_ins(generator.modules(), generator.roles):
        assert "forward" in vars(generator.pipeline.unet)
    assert generator.pipeline.unet.forward == before
    real = {"net": nn.Linear(2, 2)}
    with stand_ins(real, _method("lora", shapes=False, checkpointing=False).generator.roles):
        assert "forward" not in vars(real["net"])


@pytest.mark.parametrize(
    ("how", "checkpointing", "dtype"),
    [
        ("lora", False, torch.bfloat16),
        pytest.param("lora", True, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("lora", True, torch.float32, marks=pytest.mark.slow),
        pytest.param("full", False, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_an_encoder_that_is_called_by_itself_is_counted(how, checkpointing, dtype):
    """NCP-DPO sees features of the U-Net's down path, in float32 whatever the weights are kept in."""

    def method_of(shapes):
        pipeline = _narrow_sdxl(2)
        pipeline.unet.to(dtype)
        if shapes:
            for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
                getattr(pipeline, name).to("meta")
        generator = make_generator(pipeline, train=HOW[how], resolution=SIDE, mixed_precision="bf16")
        grey = torch.full((3, SIDE, SIDE), 0.5)
        config = PreferenceConfig(space=NCPConfig())
        method = Preference(generator, config, sources={"pairs": [Pair("a cat", grey, grey)]})
        if checkpointing:
            generator.enable_gradient_checkpointing()
        return method

    config = TrainingConfig(train_batch_size=2, mixed_precision="bf16")
    planned, real = (plan(method_of(shapes), config) for shapes in (True, False))
    assert planned.total_memory == pytest.approx(real.total_memory, rel=0.15)
    found, expected = (sum(one.activations.values()) for one in (planned, real))
    assert found == pytest.approx(expected, rel=0.15)
