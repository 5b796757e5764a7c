"""A user adapter beside a frozen model: roles, gradients, precision, and what it is refused for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from unifl.errors import UserError
from unifl.models import Conditioning, LoraTraining, UserTraining, make_generator, merged_pipeline, save_lora
from unifl.models.shapes import shaped_pipeline
from unifl.models.user import cross_attentions
from unifl.testing import FAMILIES, tiny_pipeline

USER = UserTraining(embedding_dim=6, tokens=3)
T = torch.tensor([0.8, 0.3])
PROMPTS = ["a red circle", "a cat"]


def make(family="sd15", *, train=USER, roles=("reference",), **changes):
    return make_generator(tiny_pipeline(family), train=train, roles=roles, **changes)


def disturb(generator, *, seed=1, scale=0.3):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=noise))


def latents(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def users(seed=0, vectors=1):
    return torch.randn(2, vectors, 6, generator=torch.Generator().manual_seed(seed))


def raw(generator, role="student", user=None, **options):
    cond = generator.encode_prompts(PROMPTS)
    return generator.denoise(role, latents(), T, replace(cond, user=user), **options).raw


def plain(family, generator):
    """What the UNet says that never had an adapter."""
    unet = tiny_pipeline(family).unet.requires_grad_(False)
    cond = generator.encode_prompts(PROMPTS)
    added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids} if generator.is_xl else None
    return unet(latents(), torch.tensor([799, 299]), cond.embeds, added_cond_kwargs=added).sample


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_begins_as_the_model_and_the_reference_stays_the_plain_unet(family):
    generator = make(family, roles=("reference", "teacher", "ema"))
    expected = plain(family, generator)
    for role in generator.roles.names:
        assert torch.equal(raw(generator, role, users()), expected)
    disturb(generator)
    assert (raw(generator, "student", users()) - expected).abs().max() > 1e-2
    for role in ("reference", "teacher", "ema"):
        assert torch.equal(raw(generator, role, users()), expected)
    assert generator.roles.num_copies == 0


def test_steps_of_training_move_every_trained_parameter_and_nothing_else():
    generator = make("sdxl")
    before = {name: tensor.clone() for name, tensor in generator.pipeline.unet.state_dict().items()}
    expected = raw(generator, "reference", users()).detach()
    parameters = generator.trainable_parameters()
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    for _ in range(2):  # the first step reaches Wv' alone: as long as that is zero, nothing behind it matters
        optimizer.zero_grad()
        raw(generator, "student", users()).square().mean().backward()
        optimizer.step()
    own = {id(parameter) for parameter in parameters.values()}
    for name, parameter in generator.pipeline.unet.named_parameters():
        assert torch.equal(parameter, before[name]) != (id(parameter) in own), name
        assert id(parameter) in own or parameter.grad is None
    for component, module in generator.modules().items():
        assert component == "unet" or all(p.grad is None for p in module.parameters())
    assert torch.equal(raw(generator, "reference", users()), expected)


def test_the_first_step_from_zero_reaches_the_values():
    generator = make()
    raw(generator, "student", users()).square().mean().backward()
    for name, parameter in generator.trainable_parameters().items():
        assert (parameter.grad.abs().max() > 0) == ("to_v_ip" in name)


@torch.no_grad()
def test_one_layer_is_attention_to_the_prompt_plus_scaled_attention_to_the_user():
    generator = make(train=UserTraining(embedding_dim=6, tokens=3, scale=0.5))
    disturb(generator)
    unet = generator.pipeline.unet
    attention = unet.get_submodule(cross_attentions(unet)[0])
    own = generator.roles.parameters("student")
    path = f"unet.{cross_attentions(unet)[0]}.processor"
    hidden, text = torch.randn(2, 16, 8), torch.randn(2, 77, 32)
    (user,) = unet.encoder_hid_proj([users(vectors=2)])
    user = user.flatten(1, 2)  # 2 vectors of 3 tokens

    def attend(key, value, tokens):
        q, k, v = (
            x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for x in (attention.to_q(hidden), tokens @ key.T, tokens @ value.T)
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    out = attend(attention.to_k.weight, attention.to_v.weight, text)
    out = out + 0.5 * attend(own[f"{path}.to_k_ip.weight"], own[f"{path}.to_v_ip.weight"], user)
    found = attention(hidden, (text, [user]))
    torch.testing.assert_close(found, attention.to_out[0](out), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_without_a_user_are_zeros_and_rows_do_not_touch_each_other():
    generator = make()
    disturb(generator)
    both = raw(generator, user=users())
    first = users().clone()
    first[1] = 0
    mixed = raw(generator, user=first)
    torch.testing.assert_close(mixed[0], both[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1], raw(generator)[1], rtol=0, atol=1e-5)
    assert (mixed[1] - both[1]).abs().max() > 1e-2
    # nobody stays nobody, however many vectors stand for a user
    torch.testing.assert_close(raw(generator), raw(generator, user=torch.zeros(2, 3, 6)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_guidance_leads_away_from_an_unknown_user():
    generator = make()
    disturb(generator)
    cond = replace(generator.encode_prompts(PROMPTS), user=users())
    nobody = generator.encode_negative(None, 2)
    without = generator.denoise("student", latents(), T, nobody).raw
    expected = without + 3 * (raw(generator, user=users()) - without)
    found = generator.denoise("student", latents(), T, cond, guidance=3.0).raw
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    known = generator.denoise(
        "student", latents(), T, cond, guidance=3.0, negative=replace(nobody, user=users())
    ).raw
    assert (known - found).abs().max() > 1e-2


def gradients(family, *, checkpointing, second_role):
    generator = make_generator(
        tiny_pipeline(family).to(torch.float64), train=USER, roles=("reference", "ema")
    )
    disturb(generator)
    with torch.no_grad():
        for parameter in generator.roles.parameters("ema").values():
            parameter.add_(0.3)
    if checkpointing:
        generator.enable_gradient_checkpointing()
    cond = replace(generator.encode_prompts(PROMPTS), user=users().double())
    own = generator.denoise("student", latents(), T, cond)
    generator.denoise(second_role, own.x0, T / 2, cond).raw.square().mean().backward()
    return {name: parameter.grad for name, parameter in generator.roles.parameters("student").items()}


@pytest.mark.parametrize("second_role", ["ema", "reference"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_gradient_through_a_second_role_is_that_without_checkpointing(family, second_role):
    plain = gradients(family, checkpointing=False, second_role=second_role)
    again = gradients(family, checkpointing=True, second_role=second_role)
    scale = max(gradient.abs().max() for gradient in plain.values())
    assert scale > 0
    assert max((plain[name] - again[name]).abs().max() for name in plain) / scale < 1e-6


def test_ema_follows_and_states_come_back():
    generator, other = make(roles=("ema",)), make(roles=("ema",), seed=5)
    start = {name: tensor.clone() for name, tensor in generator.roles.state("ema").items()}
    disturb(generator)
    generator.roles.ema_update(0.75)
    student = generator.trainable_state()
    assert start.keys() == student.keys()
    for name, tensor in generator.roles.state("ema").items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * student[name])
    for role in ("student", "ema"):
        other.roles.load_state(role, {n: t.clone() for n, t in generator.roles.state(role).items()})
        assert torch.equal(raw(other, role, users()), raw(generator, role, users()))
    assert not torch.equal(raw(other, "ema", users()), raw(other, "student", users()))


def test_parameters_are_few_and_counted():
    """e * e + e + (e + 1) * k * d for the tokens, 2 d for their norm, and 2 * d * width per layer."""
    generator = make(roles=("reference", "ema", "old"))
    unet, width = generator.pipeline.unet, 32
    layers = [unet.get_submodule(path).to_k.out_features for path in cross_attentions(unet)]
    expected = 6 * 6 + 6 + (6 + 1) * 3 * width + 2 * width + 2 * width * sum(layers)
    counts = {
        role: sum(p.numel() for p in generator.roles.parameters(role).values())
        for role in generator.roles.names
    }
    assert counts == {"student": expected, "reference": 0, "ema": expected, "old": expected}
    bare = sum(p.numel() for p in tiny_pipeline("sd15").unet.parameters())
    assert sum(p.numel() for p in unet.parameters()) == bare + 3 * expected


def test_shapes_without_weights_can_be_counted():
    """Keys and values of the 16 layers of Stable Diffusion 1.5: 19.2 of the 22 million of IP-Adapter."""
    generator = make_generator(shaped_pipeline("sd15"), train=UserTraining(embedding_dim=1024), roles=())
    own = generator.trainable_parameters()
    assert all(parameter.is_meta for parameter in own.values())
    layers = sum(parameter.numel() for name, parameter in own.items() if "_ip.weight" in name)
    assert layers == 2 * 768 * (320 * 5 + 640 * 5 + 1280 * 6)


def test_seed_decides_the_adapter_and_global_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    states = [make(seed=seed).trainable_state() for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    name = "unet.encoder_hid_proj.ff.net.2.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_adapters_stay_in_float32_over_a_base_in_half_precision():
    pipeline = tiny_pipeline("sd15").to(torch.bfloat16)
    generator = make_generator(pipeline, train=USER, roles=("reference",), mixed_precision="bf16")
    assert {p.dtype for p in generator.trainable_parameters().values()} == {torch.float32}
    with torch.no_grad():
        expected = raw(generator, "reference", users())
        assert torch.equal(raw(generator, "student", users()), expected)
    disturb(generator)
    found = raw(generator, "student", users())
    found.square().mean().backward()
    assert found.dtype == torch.float32 and (found - expected).abs().max() > 1e-2
    assert all(p.grad.abs().max() > 0 for p in generator.trainable_parameters().values())


def test_a_lora_to_start_from_is_part_of_the_reference(tmp_path):
    first = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2))
    disturb(first)
    generator = make(lora=save_lora(first, tmp_path))
    with torch.no_grad():
        trained = raw(first)
        for role in ("student", "reference"):
            torch.testing.assert_close(raw(generator, role, users()), trained, rtol=0, atol=1e-5)


def test_two_users_pull_apart_and_a_mixture_stands_between_them():
    """A toy objective: the first user likes large latents, the second one small ones."""
    generator = make(roles=())
    ways, one_each = torch.tensor([1.0, -1.0]), torch.eye(2, 6)[:, None]
    optimizer = torch.optim.Adam(generator.trainable_parameters().values(), lr=1e-2)

    def level(user):
        return raw(generator, user=user).mean((1, 2, 3))

    with torch.no_grad():
        start = level(one_each)
    for _ in range(40):
        optimizer.zero_grad()
        F.softplus(-ways * (level(one_each) - start) * 10).mean().backward()
        optimizer.step()
    with torch.no_grad():
        a, b = (level(one_each[i].expand(2, 1, 6)) for i in (0, 1))
        assert (a - start > 0.1).all() and (start - b > 0.1).all()
        mixtures = [
            level((share * one_each[0] + (1 - share) * one_each[1]).expand(2, 1, 6))
            for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        assert (torch.stack(mixtures).diff(dim=0) > -0.01).all()
        assert (mixtures[2] - mixtures[0] > 0.1).all() and (mixtures[4] - mixtures[2] > 0.1).all()


def test_conditioning_carries_users():
    cond = Conditioning(torch.zeros(2, 3, 4), user=users())
    assert torch.equal(cond.repeat(2).user, users().repeat(2, 1, 1))
    assert cond.to(dtype=torch.float64).user.dtype == torch.float64
    nobody = Conditioning(torch.zeros(1, 3, 4))
    assert nobody.repeat(2).user is None and Conditioning.cat([nobody, nobody]).user is None
    joined = Conditioning.cat([nobody, cond, nobody]).user
    assert torch.equal(joined, torch.cat([torch.zeros(1, 1, 6), users(), torch.zeros(1, 1, 6)]))
    with pytest.raises(UserError, match="the same number of vectors"):
        Conditioning.cat([cond, Conditioning(torch.zeros(2, 3, 4), user=users(vectors=2))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"tokens": 0}, "tokens is 0.*1 or more"),
        ({"scale": 0.0}, r"scale is 0\.0; it must be above 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        UserTraining(**{"embedding_dim": 6, **changes})


def test_users_need_an_adapter_of_their_width():
    with pytest.raises(UserError, match="no adapter for them.*UserTraining"):
        raw(make_generator(tiny_pipeline("sd15")), user=users())
    with pytest.raises(UserError, match="have 5 numbers and the adapter takes 6"):
        raw(make(), user=torch.zeros(2, 1, 5))
    generator = make()
    cond = generator.encode_prompts(PROMPTS)
    object.__setattr__(cond, "user", torch.zeros(4, 1, 6))  # the check of shapes is for tests alone
    with pytest.raises(UserError, match="4 users for 2 prompts"):
        generator.roles.image_embeds(cond)


def test_half_precision_needs_autocast():
    for dtype, mixed in ((torch.bfloat16, "no"), (torch.float16, "no"), (torch.float16, "fp16")):
        with pytest.raises(UserError, match="user adapter trains in float32.*bf16"):
            make_generator(tiny_pipeline("sd15").to(dtype), train=USER, mixed_precision=mixed)


def test_models_that_cannot_have_one():
    pipeline = make().pipeline
    with pytest.raises(UserError, match="carries an IP-Adapter already"):
        make_generator(pipeline, train=USER)
    blind = tiny_pipeline("sd15")
    changes = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    blind.unet = type(blind.unet)(**{**blind.unet.config, **changes, "mid_block_type": None})
    with pytest.raises(UserError, match="needs a UNet with attention to the prompt"):
        make_generator(blind, train=USER)


def test_training_outside_the_adapter_is_refused():
    generator = make()
    generator.pipeline.unet.conv_in.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"unet\.conv_in\.weight would train.*outside the user adapter"):
        generator.trainable_parameters()


def test_it_cannot_be_folded_into_the_weights():
    with pytest.raises(UserError, match="cannot be folded.*save_user_adapter"):
        merged_pipeline(make())
