"""Pre-train a latent proxy for a model: encode pictures once, then let latents and captions find each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from unifl.assembly.data_config import EncodeConfig, PicturesConfig
from unifl.assembly.device import chosen_device
from unifl.assembly.locate import locate_model
from unifl.assembly.sources import prepared, source
from unifl.data.encoded import EncodedPictures
from unifl.data.reading import Reading
from unifl.errors import UserError
from unifl.feedback import LatentProxy, LatentProxyConfig, make_proxy, pretrain_proxy, save_proxy
from unifl.feedback.latent_proxy_fit import ProxyFitConfig, ProxyFitResult, ProxyFitRow
from unifl.models import Generator, load_generator


@dataclass(frozen=True, kw_only=True)
class ProxyRequest:
    """What to pre-train.

    Attributes:
        model: Whose latents the proxy reads.
        data: Pictures with captions, as in a recipe.
        folder: Gets the proxy.
        cache: Gets the encoded pictures, which later runs on them may read too.
        tower: What reads latents.
        width: Of that tower, 0 for one that suits the size of the latents.
        depth: Its blocks.
        text: "pipeline" copies the text encoder of the model; "hashed" is a small network on words.
        fit: Steps, batch size, learning rate.
        device: Where.
    """

    model: str
    data: str
    folder: Path
    cache: Path
    tower: Literal["vit", "resnet"] = "vit"
    width: int = 0
    depth: int = 6
    text: Literal["pipeline", "hashed"] = "pipeline"
    fit: ProxyFitConfig
    device: str = "auto"


def fit_proxy(
    request: ProxyRequest, *, progress: Callable[[ProxyFitRow], None] | None = None
) -> ProxyFitResult:
    """Encode, pre-train and save.

    Args:
        request: What.
        progress: Called after every measurement.

    Raises:
        UserError: A folder that is not empty, a model that is not there, data without captions.
    """
    if request.folder.exists() and any(request.folder.iterdir()):
        raise UserError(f"{request.folder} is not empty; name another folder for the proxy")
    device = chosen_device(request.device)
    found = locate_model(request.model)
    generator = load_generator(found.source, roles=(), lora=found.lora, device=device)
    given = _pictures(request)
    reading = prepared(
        source(given, name="data"), given, generator, name="data", seed=request.fit.seed, batch_size=1
    )
    assert isinstance(reading, Reading) and isinstance(reading.source, EncodedPictures)
    rows = [reading.source[index] for index in range(len(reading))]
    latents, prompts = torch.stack([row.mean for row in rows]), [row.prompt for row in rows]
    proxy = _proxy(request, generator).to(device)
    result = pretrain_proxy(proxy, latents.to(device), prompts, config=request.fit, progress=progress)
    save_proxy(proxy, request.folder)
    return result


def _pictures(request: ProxyRequest) -> PicturesConfig:
    encode = EncodeConfig(folder=str(request.cache), batch_size=32)
    named = "folder" if Path(request.data).is_dir() else "shards" if ".tar" in request.data else "source"
    return PicturesConfig(encode=encode, **{named: request.data})  # type: ignore[arg-type]


def _proxy(request: ProxyRequest, generator: Generator) -> LatentProxy:
    channels, size, _ = generator.latent_shape
    vae, pipeline = generator.pipeline.vae.config, generator.pipeline
    width = request.width or 64 * max(1, round(math.log2(size)) - 1)
    config = LatentProxyConfig(
        channels=channels,
        size=size,
        scaling_factor=vae.scaling_factor,
        shift=vae.get("shift_factor") or 0.0,
        tower=request.tower,
        width=width,
        depth=request.depth,
        heads=max(1, width // 64),
        patch=max(1, size // 16),
        embedding=min(1024, 2 * width),
        text="clip" if request.text == "pipeline" else "hashed",
    )
    if config.text == "hashed":
        return make_proxy(config, seed=request.fit.seed)
    return make_proxy(
        config, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer, seed=request.fit.seed
    )
