"""Distances of noise-conditioned perception on the packaged model, their rounding errors, and the size of encoders.

    python benchmarks/ncp_distances.py            # writes benchmarks/results/ncp_distances.json, a minute or two

Nothing is downloaded: sizes for Stable Diffusion are counted on networks that have shapes and no weights.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from unifl.methods.ncp import NCP, NCPConfig
from unifl.models import Conditioning, Generator, load_generator, make_generator
from unifl.models.conditioning import Prediction
from unifl.models.features import EncoderFeatures
from unifl.models.shapes import shaped_pipeline
from unifl.process import from_x0_eps, to_eps, to_x0
from unifl.randomness import Key
from unifl.world.assets import PIPELINE, load_source

RESULT = Path(__file__).parent / "results" / "ncp_distances.json"
INDICES = (1, 10, 100, 300, 500, 700, 900, 999)
LAYERS = ("down_last", "mid", "all_down")
PICTURES = 64
SIZES = ("own", 0.3, 0.1, 0.03)
"""Root mean squares of errors: the model's own, or white noise of this size."""


class Measured:
    """Scenes of the embedded world under noise, and what the packaged model says about them."""

    def __init__(self) -> None:
        self.single, self.double = (load_generator(str(PIPELINE), roles=("reference",)) for _ in range(2))
        self.double.pipeline.unet.to(torch.float64)
        scenes = [load_source("scenes")[index] for index in range(PICTURES)]
        self.key = Key(0, 0, tuple(range(PICTURES)))
        self.x0 = self.single.encode(torch.stack([scene.image for scene in scenes]))
        self.eps = self.key.normal("noise", self.x0.shape[1:])
        self.cond = self.single.encode_prompts([scene.prompt for scene in scenes], role="reference")

    @torch.no_grad()
    def distance(self, config: NCPConfig, index: int, size: str | float = "own", *, exact: bool = False):
        """Distances and mean squared errors of the output (n,); `exact` computes in float64."""
        generator = self.double if exact else self.single
        dtype = torch.float64 if exact else torch.float32
        x0, eps, t = (
            self.x0.to(dtype),
            self.eps.to(dtype),
            torch.full((PICTURES,), (index + 1) / 1000).to(dtype),
        )
        x_t = generator.process.add_noise(x0, eps, t)
        alpha, sigma = generator.process.weights(t)
        raw = target = from_x0_eps(x0, eps, alpha, sigma, generator.kind)
        if size == "own":
            single = self.single.process.add_noise(self.x0, self.eps, t.float())
            raw = self.single.denoise("reference", single, t.float(), self.cond).raw.to(dtype)
        else:
            raw = target + size * self.key.normal("error", x0.shape[1:]).to(dtype)
        said = (convert(raw, x_t, alpha, sigma, generator.kind) for convert in (to_x0, to_eps))
        space = NCP(config, generator)
        truth = space.truth(x0, eps, x_t, t, self.cond, self.key)
        found = space.distance(Prediction(x_t, t, raw, *said), truth)
        return found, (raw - target).square().flatten(1).mean(1)


def over_time(measured: Measured) -> list[dict]:
    """Mean distances over the latent space's, by layer, states and normalisation."""
    rows = []
    for layer in LAYERS:
        for states in ("reverse", "renoise"):
            for normalise in ("step", "none", "energy"):
                config = NCPConfig(layer=layer, states=states, normalise=normalise)
                found = [measured.distance(config, index) for index in INDICES]
                ratios = [float(distance.mean() / error.mean()) for distance, error in found]
                rows.append({"layer": layer, "states": states, "normalise": normalise, "ratio": ratios})
    return rows


def rounding(measured: Measured) -> list[dict]:
    """Median of |distance / distance in float64 - 1| over pictures, by precision and size of the error."""
    rows = []
    for layer, states in (*((layer, "reverse") for layer in LAYERS), ("down_last", "renoise")):
        for precision in ("float32", "float16", "bfloat16"):
            for index in (100, 500, 900):
                config = NCPConfig(layer=layer, states=states, precision=precision)
                row = {"layer": layer, "states": states, "precision": precision, "index": index}
                for size in SIZES:
                    plain = replace(config, precision="float32")
                    right, _ = measured.distance(plain, index, size, exact=True)
                    found, _ = measured.distance(config, index, size)
                    row[f"error {size}"] = float((found / right - 1).abs().median())
                rows.append(row)
    return rows


def encoder(family: str, layer: str) -> dict:
    """Weights, multiplications and what backward keeps of one evaluation in float32, on shapes."""
    generator = make_generator(shaped_pipeline(family, dtype=torch.float32), roles=("reference",))
    unet = generator.pipeline.unet
    parts = [
        unet.conv_in,
        unet.time_embedding,
        *unet.down_blocks,
        *([unet.mid_block] if layer == "mid" else []),
    ]
    parts += [unet.add_embedding] if generator.is_xl else []
    x, t, cond = _inputs(generator, "meta")
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
        unet(x, t, cond.embeds, added_cond_kwargs=added)
    with FlopCounterMode(display=False) as part, torch.no_grad():
        EncoderFeatures(generator, layer=layer)(x, t, cond)
    count = [sum(p.numel() for module in modules for p in module.parameters()) for modules in (parts, [unet])]
    return {
        "family": family,
        "layer": layer,
        "image_size": list(generator.image_size),
        "parameters": count[0],
        "share_of_parameters": count[0] / count[1],
        "share_of_flops": part.get_total_flops() / whole.get_total_flops(),
        "stored_bytes": _stored(generator, layer),
    }


def _stored(generator: Generator, layer: str) -> int:
    """Bytes that autograd keeps, counted on fake tensors of the CPU: attention is fused there as on a GPU."""
    kept: dict[int, torch.Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = generator.pipeline.unet.to_empty(device="cpu")
        weights = {p.untyped_storage()._cdata for p in unet.parameters()}
        x, t, cond = _inputs(generator, "cpu")

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage()._cdata not in weights:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = EncoderFeatures(generator, layer=layer)(x.requires_grad_(), t, cond)
        del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _inputs(generator: Generator, device: str) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    width = generator.pipeline.unet.config.cross_attention_dim
    pooled = torch.empty(1, 1280, device=device) if generator.is_xl else None
    ids = torch.empty(1, 6, device=device) if generator.is_xl else None
    cond = Conditioning(torch.empty(1, 77, width, device=device), pooled, ids)
    x = torch.empty(1, *generator.latent_shape, device=device)
    return x, torch.full((1,), 0.5, device=device), cond


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    measured = Measured()
    result = {
        "torch": torch.__version__,
        "pictures": PICTURES,
        "indices": list(INDICES),
        "over_time": over_time(measured),
        "rounding": rounding(measured),
        "encoders": [encoder(family, layer) for family in ("sd15", "sdxl") for layer in LAYERS],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
