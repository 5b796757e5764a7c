"""Whole models beside plain diffusers; the rows of docs/conformance.md that belong to no single file."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from unifl.models import LoraTraining, make_generator
from unifl.models.save import save_lora
from unifl.process import DiscreteVP, SolverConfig, solve, to_eps, to_x0
from unifl.testing import FAMILIES, tiny_pipeline

PROMPTS = ["a red circle", "a photo of a small blue square"]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    """A student with LoRA on UNet and text encoders, far from its start, and the files it was saved to."""
    generator = make_generator(
        tiny_pipeline(request.param),
        train=LoraTraining(rank=4, alpha=2.0, text_encoder=True),
        roles=("reference",),
    )
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    folder = tmp_path_factory.mktemp(request.param)
    save_lora(generator, folder)
    return request.param, generator, folder


def _latents() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _raw(generator, role: str = "student") -> torch.Tensor:
    cond = generator.encode_prompts(PROMPTS, role=role)
    return generator.denoise(role, _latents(), torch.tensor([0.3, 0.9]), cond).raw


@torch.no_grad()
def _plain_raw(pipeline) -> torch.Tensor:
    """The same evaluation by functions of diffusers alone."""
    embeds, _, *pooled = pipeline.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    added = (
        {"text_embeds": pooled[0], "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
        if pooled
        else None
    )
    return pipeline.unet(_latents(), torch.tensor([299, 899]), embeds, added_cond_kwargs=added).sample


@pytest.mark.parametrize(
    "file", ["pytorch_lora_weights.safetensors", "pytorch_lora_weights_kohya.safetensors"]
)
def test_saved_lora_files_mean_the_same_to_diffusers(trained, file):
    family, generator, folder = trained
    plain = tiny_pipeline(family)
    plain.load_lora_weights(str(folder), weight_name=file)
    ours, theirs = _raw(generator), _plain_raw(plain)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)
    assert (ours - _raw(generator, "reference")).abs().max() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("points", [20, 50])
def test_the_solver_on_a_grid_lands_where_diffusers_does(prediction, points):
    """Every interval of a distillation's grid, the last included, which ends at index 0 and not at t = 0.

    It is the step of the `DDIMSolver` in the LCM script: alphas at the grid's timesteps, and before them the first.
    """
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(points)
    process = DiscreteVP(scheduler.alphas_cumprod)
    index = torch.arange(points)
    draws = torch.Generator().manual_seed(0)
    x, raw = (torch.randn(points, 4, 8, 8, generator=draws) for _ in range(2))

    def field(x_t, t):
        alpha, sigma = process.weights(t)
        return to_x0(raw, x_t, alpha, sigma, prediction), to_eps(raw, x_t, alpha, sigma, prediction)

    t = (index + 1) / points
    ours = solve(field, x, t, (index / points).clamp(min=1 / 1000), process, SolverConfig())
    steps = [
        scheduler.step(raw[i : i + 1], int(1000 // points * (i + 1) - 1), x[i : i + 1]) for i in range(points)
    ]
    theirs, clean = (
        torch.cat([step[name] for step in steps]) for name in ("prev_sample", "pred_original_sample")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(field(x, t)[0], clean, rtol=2e-6, atol=5e-6)
    at_zero = solve(field, x, t, index / points, process, SolverConfig())
    assert (at_zero - theirs)[1:].abs().max() < 1e-5 < 0.01 < (at_zero - theirs)[0].abs().max()
