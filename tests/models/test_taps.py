from __future__ import annotations

import pytest
import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel

from unifl.errors import UserError
from unifl.models.checkpointing import enable_checkpointing, role_aware_checkpoint
from unifl.models.copies import CopyRoles
from unifl.models.taps import tap_block
from unifl.testing import tiny_pipeline


def make(kind="sd3"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "sd3":
            network = SD3Transformer2DModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                caption_projection_dim=16,
                pooled_projection_dim=12,
                pos_embed_max_size=8,
            )
        else:
            network = PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=8,
                in_channels=4,
                out_channels=8,
                num_layers=3,
                cross_attention_dim=16,
                sample_size=8,
                caption_channels=16,
                norm_num_groups=1,
                use_additional_conditions=False,
            )
    return network.double().eval().requires_grad_(False)


def call(network, x):
    draw = torch.Generator().manual_seed(1)
    told = {
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=draw).double(),
        "timestep": torch.tensor([700.0, 300.0], dtype=torch.float64),
        "return_dict": False,
    }
    if isinstance(network, SD3Transformer2DModel):
        told["pooled_projections"] = torch.randn(2, 12, generator=draw).double()
    return lambda: network(x, **told)


def latents(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("kind", ["sd3", "pixart"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_it_is_what_the_block_answers_and_nothing_runs_behind_it(kind, number):
    network, x, seen, calls = make(kind), latents(), [], []
    hook = network.transformer_blocks[number].register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        whole = call(network, x)()[0]
    hook.remove()
    expected = seen[0][1] if isinstance(seen[0], tuple) else seen[0]
    for index, block in enumerate(network.transformer_blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    network.proj_out.register_forward_hook(lambda *_: calls.append("end"))
    with torch.no_grad():
        assert torch.equal(tap_block(network, number, call(network, x)), expected)
    assert calls == list(range(number + 1))
    with torch.no_grad():
        assert torch.equal(call(network, x)()[0], whole)  # no hook is left


@pytest.mark.parametrize("number", [0, 2])
def test_the_gradient_is_that_of_finite_differences_also_with_checkpointing(number):
    way, gradients, calls = latents(seed=2), [], []
    for checkpointing in (False, True):
        network, x = make(), latents().requires_grad_(True)
        if checkpointing:
            enable_checkpointing(network, role_aware_checkpoint(CopyRoles({"transformer": network})))
            network.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        tap_block(network, number, call(network, x)).square().sum().backward()
        gradients.append(x.grad)
    assert len(calls) == 2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        ahead, behind = (
            tap_block(network, number, call(network, latents() + h * way)).square().sum()
            for h in (1e-5, -1e-5)
        )
    torch.testing.assert_close((gradients[0] * way).sum(), (ahead - behind) / 2e-5, rtol=1e-6, atol=0)


def test_errors_of_the_evaluation_pass_and_mistakes_are_named():
    network = make()
    with pytest.raises(ValueError, match="not enough values"):
        tap_block(network, 1, lambda: network(torch.zeros(1)))
    assert not network.transformer_blocks[2]._forward_pre_hooks
    for number in (3, -1):
        with pytest.raises(UserError, match=f"layer is {number}, and this transformer has the blocks 0 to 2"):
            tap_block(network, number, call(network, latents()))
    with pytest.raises(
        UserError, match="UNet2DConditionModel has no row of transformer blocks; name a layer"
    ):
        tap_block(tiny_pipeline("sd15").unet, 0, lambda: None)
