from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.models import FullTraining, LoraTraining, make_generator, merged_pipeline
from unifl.testing import tiny_pipeline

LORA = LoraTraining(rank=4, text_encoder=True)
FULL = FullTraining(text_encoder=True)
T = torch.tensor([0.8, 0.3])


def make(train, *, family="sd15", roles=("reference",), **changes):
    return make_generator(tiny_pipeline(family), train=train, roles=roles, **changes)


def disturb(generator, *, seed=1, scale=0.05):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=noise))


def latents(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def raw(generator, role):
    cond = generator.encode_prompts(["a red circle", "a cat"], role=role)
    return generator.denoise(role, latents(), T, cond).raw


def flags(generator):
    return {
        f"{name}.{path}": parameter.requires_grad
        for name, module in generator.modules().items()
        for path, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("train", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_training_moves_the_student_and_nobody_else(train, family):
    generator = make(train, family=family, roles=("reference", "teacher", "ema", "old"))
    before = {role: raw(generator, role) for role in generator.roles.names}
    # full training may differ in the last bits: torch folds linear layers otherwise where weights need a gradient
    for role in generator.roles.names:
        torch.testing.assert_close(before[role], before["student"], rtol=0, atol=2e-6)
    disturb(generator)
    assert (raw(generator, "student") - before["student"]).abs().max() > 1e-2
    for role in ("reference", "teacher", "ema", "old"):
        assert torch.equal(raw(generator, role), before[role])


@pytest.mark.parametrize("train", [LORA, FULL], ids=["lora", "full"])
def test_every_trainable_parameter_gets_a_gradient_and_no_other(train):
    for family in ("sd15", "sdxl"):
        generator = make(train, family=family, roles=("reference", "ema"))
        disturb(generator)  # away from B = 0, where A has no gradient
        cond = generator.encode_prompts(["a red circle", "a cat"], grad=True)
        generator.denoise("student", latents(), T, cond).x0.square().mean().backward()
        own = {id(p) for p in generator.trainable_parameters().values()}
        for parameter in generator.trainable_parameters().values():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
        for module in generator.modules().values():
            assert all(p.grad is None for p in module.parameters() if id(p) not in own)


@pytest.mark.parametrize("train", [LORA, FULL], ids=["lora", "full"])
def test_switching_leaves_gradient_flags_as_they_were(train):
    generator = make(train, roles=("reference", "ema"))
    before = flags(generator)
    assert any(before.values())
    with generator.roles.use("reference"):
        assert flags(generator) == before
        with generator.roles.use("ema"):
            assert flags(generator) == before
            with generator.roles.use("student"):
                assert flags(generator) == before
        assert generator.roles.current == "reference"
    assert generator.roles.current == "student"
    generator.roles.add("old")
    added = {name for name, flag in flags(generator).items() if flag and not before.get(name)}
    assert not added
    assert all(flags(generator)[name] for name, flag in before.items() if flag)


def test_role_is_restored_after_an_error():
    generator = make(LORA)
    with pytest.raises(RuntimeError, match="inside"), generator.roles.use("reference"):
        raise RuntimeError("inside")
    assert generator.roles.current == "student"
    disturb(generator)
    assert not torch.equal(raw(generator, "student"), raw(generator, "reference"))


def test_reference_is_the_plain_network_bit_for_bit():
    plain = tiny_pipeline("sd15").unet.requires_grad_(False)
    generator = make(LORA)
    disturb(generator)
    embeds = generator.encode_prompts(["a red circle", "a cat"], role="reference").embeds
    with torch.no_grad():
        expected = plain(latents(), torch.tensor([799, 299]), embeds).sample
    assert torch.equal(raw(generator, "reference"), expected)


def test_ema_follows_the_student():
    for train in (LORA, FULL):
        generator = make(train, roles=("ema",))
        start = {name: tensor.clone() for name, tensor in generator.roles.state("ema").items()}
        disturb(generator)
        generator.roles.ema_update(0.75)
        student = generator.trainable_state()
        assert start.keys() == student.keys()
        for name, tensor in generator.roles.state("ema").items():
            torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * student[name])


def test_ema_update_without_the_role_says_what_to_do():
    with pytest.raises(UserError, match=r"roles.add\(\"ema\"\)"):
        make(LORA, roles=()).roles.ema_update(0.9)


@pytest.mark.parametrize("train", [LORA, FULL], ids=["lora", "full"])
def test_states_come_back(train):
    generator, other = make(train, roles=("ema",)), make(train, roles=("ema",))
    disturb(generator)
    generator.roles.ema_update(0.5)
    other.load_trainable_state({n: t.clone() for n, t in generator.trainable_state().items()})
    other.roles.load_state("ema", {n: t.clone() for n, t in generator.roles.state("ema").items()})
    assert torch.equal(raw(other, "student"), raw(generator, "student"))
    assert torch.equal(raw(other, "ema"), raw(generator, "ema"))
    with pytest.raises(UserError, match="do not fit this model"):
        other.load_trainable_state({})


def test_state_of_another_rank_is_refused():
    state = make(LoraTraining(rank=8, text_encoder=True)).trainable_state()
    with pytest.raises(UserError, match="rank"):
        make(LORA).load_trainable_state(state)


def test_seed_decides_the_adapter_and_global_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    states = [make(LORA, seed=seed, roles=("ema",)).trainable_state() for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_training_outside_the_adapters_is_refused():
    generator = make(LORA)
    generator.pipeline.unet.conv_in.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"unet\.conv_in\.weight would train.*outside the adapters"):
        generator.trainable_parameters()


def test_training_a_network_that_was_not_chosen_is_refused():
    generator = make(FullTraining())
    generator.pipeline.vae.decoder.conv_in.bias.requires_grad_(True)
    with pytest.raises(UserError, match=r"vae\.decoder\.conv_in\.bias would train.*not chosen"):
        generator.trainable_parameters()


def test_copies_are_made_only_for_the_roles_asked_for():
    assert make(FullTraining(), roles=()).roles.num_copies == 0
    assert make(FullTraining(), roles=("reference", "teacher")).roles.num_copies == 1
    assert make(FullTraining(), roles=("reference", "teacher", "ema")).roles.num_copies == 2
    assert make(LORA, roles=("reference", "teacher", "ema")).roles.num_copies == 0
    assert make(None, roles=("reference",)).roles.num_copies == 0


def test_reference_cannot_be_made_after_training_began():
    generator = make(FullTraining(), roles=())
    disturb(generator)
    with pytest.raises(UserError, match="before the first step"):
        generator.roles.add("reference")
    generator.roles.add("ema")  # follows the student, so it may come at any time


@pytest.mark.parametrize("train", [None, LORA, FULL], ids=["none", "lora", "full"])
def test_no_weights_of_a_role_that_was_not_made(train):
    # a copy would be the student's, an adapter would be left out: another model under the role's name
    generator = make(train, roles=())
    with pytest.raises(UserError, match="no role 'ema' here.*there are student"):
        merged_pipeline(generator, role="ema")
    with pytest.raises(UserError, match="no role 'ema'"):
        generator.roles.state("ema")
    with pytest.raises(UserError, match="no role 'ema'"):
        generator.roles.load_state("ema", {})


def test_roles_are_made_when_asked_for():
    for train in (LORA, FULL):
        generator = make_generator(tiny_pipeline("sd15"), train=train)
        assert generator.roles.names == ("student",) and generator.roles.num_copies == 0


def test_unknown_roles_name_the_nearest():
    generator = make(LORA)
    with pytest.raises(UserError, match="did you mean 'reference'"):
        generator.roles.add("referense")
    with pytest.raises(UserError, match="no role 'ema'"), generator.roles.use("ema"):
        pass


def test_adapters_stay_in_float32_over_a_base_in_half_precision():
    pipeline = tiny_pipeline("sd15").to(torch.bfloat16)
    generator = make_generator(pipeline, train=LoraTraining(rank=2))
    assert {p.dtype for p in generator.trainable_parameters().values()} == {torch.float32}
    assert raw(generator, "student").dtype == torch.float32
    assert generator.device.type == "cpu"
