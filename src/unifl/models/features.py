"""The encoder of a denoiser as a feature space: what its first part makes of noisy latents, frozen.

Of a U-Net that is the down path, of a transformer the blocks up to one. What is behind is not evaluated. The weights
are those of the role `reference` and never get a gradient; the latents that go in may have one. Mixed precision and
TF32 are off here, and half-precision weights are cast up, because the inputs that a feature loss compares can differ by
less than these resolve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.models.autoencoder import dtype_of
from unifl.models.checkpointing import enable_checkpointing, role_aware_checkpoint
from unifl.models.conditioning import Conditioning
from unifl.models.denoiser import UNET, evaluate
from unifl.models.generator import Generator
from unifl.models.guidance_embedding import guidance_embedding, guidance_width
from unifl.models.taps import check_block, tap_block
from unifl.models.user import with_user
from unifl.randomness import Key

Layer = Literal["down_last", "mid", "all_down"]
"""Of a UNet: the output of the last down block, that of the mid block, or everything that the down path hands to the up
path (the output of `conv_in`, and of every pair of layers and every downsampling behind it)."""

Precision = Literal["float32", "bfloat16", "float16"]

ROLE = "reference"
"""Whose weights see; full fine-tuning keeps a copy for it."""

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class EncoderFeatures:
    """Calls the first part of a generator's denoiser under its role `reference`.

    Weights in half precision are cast to float32 block by block, so that no second copy of the network is kept. A pass
    without gradient holds one cast block at a time. One with gradient holds the cast encoder from forward to backward
    (backward needs it), or, with gradient checkpointing, one block at a time. A transformer is one block here.

    Args:
        generator: The model; its role `reference` is there when features are asked for.
        layer: What is looked at; a number is a block of a transformer.
        precision: float32 or better; or half precision by autocast.
        encoder: "start" is the model that training started from; "random" one of its shape with random weights in
            float32, as a control.
        seed: Of the random weights.

    Raises:
        UserError: A layer that this backbone does not have.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        layer: Layer | int = "down_last",
        precision: Precision = "float32",
        encoder: Literal["start", "random"] = "start",
        seed: int = 0,
    ) -> None:
        _require_layer(_network(generator), layer)
        self.generator, self.layer, self.precision = generator, layer, precision
        self._random = _random_encoder(generator, layer, seed) if encoder == "random" else None
        self._again = role_aware_checkpoint(generator.roles)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that the generator needs."""
        return () if self._random is not None else (ROLE,)

    def __call__(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> list[Float[Tensor, "b d ..."]]:
        """Feature maps (b, d, h', w') of the layer, or the tokens (b, n, d) behind a transformer's block.

        Args:
            x: Noisy latents; the only input that a gradient flows to.
            t: Their times, in (0, 1].
            cond: What the role `reference` reads in the prompts; constants here.
        """
        network = self._encoder()
        half = _HALF.get(self.precision)
        role = nullcontext() if self._random is not None else self.generator.roles.use(ROLE)
        exact = _ieee() if half is None else nullcontext()
        kind = self.generator.device.type
        with role, exact, torch.autocast(kind, half, enabled=half is not None, cache_enabled=False):
            own = dtype_of(network)
            widen = half is None and own.itemsize < 4
            x = x.to(torch.float32 if widen else own)
            if isinstance(self.layer, int):
                return [self._behind(network, self.layer, x, t, cond, widen=widen)]
            return self._down(network, x, t, cond, widen=widen)

    def _behind(
        self, network: Any, number: int, x: Tensor, t: Tensor, cond: Conditioning, *, widen: bool
    ) -> Tensor:
        """Of a transformer: what its block of this number hands on."""
        cond, timestep = _constant(cond.to(x.device, x.dtype)), self.generator.schedule.timestep(t.float())

        def look(latents: Tensor) -> Tensor:
            return tap_block(network, number, lambda: evaluate(network, latents, timestep, cond))

        if not widen:
            return look(x)
        before = [part for name, part in network.named_children() if name != "transformer_blocks"]
        return self._widened(network, [*before, *network.transformer_blocks[: number + 1]], look, x)

    def _down(self, unet: Any, x: Tensor, t: Tensor, cond: Conditioning, *, widen: bool) -> list[Tensor]:
        told, text = self._told(unet, x, t, cond, widen=widen)
        x = self._run(unet.conv_in, x, widen=widen)
        found = [x]
        for block in unet.down_blocks:
            inputs = (x, told, text) if getattr(block, "has_cross_attention", False) else (x, told)
            x, passed = self._run(block, *inputs, widen=widen)
            found += passed
        if self.layer == "mid":
            block = unet.mid_block
            inputs = (x, told, text) if getattr(block, "has_cross_attention", False) else (x, told)
            return [self._run(block, *inputs, widen=widen)]
        return found if self.layer == "all_down" else [x]

    @torch.no_grad()
    def _told(
        self, unet: Any, x: Tensor, t: Tensor, cond: Conditioning, *, widen: bool
    ) -> tuple[Tensor, Any]:
        """The embedding of the time and of what SDXL adds to it, and what the attention to the prompt sees."""
        generator, cond = self.generator, _constant(cond.to(x.device, x.dtype))
        added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids} if generator.is_xl else {}
        added = with_user(generator.roles, cond, added) or {}
        guidance = None
        if generator.embeds_guidance(ROLE):
            guidance = guidance_embedding(torch.ones_like(t), guidance_width(unet)).to(x.dtype)
        parts = [unet.time_embedding, *([unet.add_embedding] if generator.is_xl else [])]
        with _float32(unet, parts) if widen else nullcontext():
            timestep = generator.schedule.timestep(t.float())
            embedded = unet.time_embedding(unet.get_time_embed(x, timestep), guidance)
            extra = unet.get_aug_embed(embedded, cond.embeds, added)
        text = unet.process_encoder_hidden_states(cond.embeds, added)
        return embedded if extra is None else embedded + extra, text

    def _run(self, block: Any, *inputs: Any, widen: bool) -> Any:
        if not widen:
            return block(*inputs)  # which recomputes by itself where gradient checkpointing is on
        return self._widened(block, [block], block, *inputs)

    def _widened(
        self, module: Any, parts: Sequence[nn.Module], function: Callable[..., Any], *inputs: Any
    ) -> Any:
        """A function of a module, with some of its parts in float32; recomputed as a whole where that is on."""

        def run(*again: Any) -> Any:
            with _float32(module, parts):
                return function(*again)

        recompute = _recomputes(module) and torch.is_grad_enabled()
        return self._again(run, *inputs) if recompute else run(*inputs)

    def _encoder(self) -> Any:
        own: Any = self.generator.roles.module(self.generator.denoiser, ROLE)
        if self._random is None:
            return own
        if _recomputes(own) and not _recomputes(self._random):
            enable_checkpointing(self._random, self._again)
        return self._random


@contextmanager
def _ieee() -> Iterator[None]:
    """Within the block, products of float32 are not rounded to TF32, whose ten bits are those of float16.

    cuDNN's convolutions are by default. Backward, which runs later, may round: it takes no differences.
    """
    on_gpu, on_cpu = cast("Any", torch.backends.cudnn), cast("Any", torch.backends.mkldnn)
    backends: tuple[Any, ...] = (on_gpu.conv, torch.backends.cuda.matmul, on_cpu.conv, on_cpu.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@contextmanager
def _float32(whole: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, the half-precision weights of some parts of a module are float32, and it recomputes nothing.

    What runs under this is recomputed, where it is, as a whole: a recomputation from inside would come after the end of
    this block, and find half-precision weights.
    """
    held = [
        (module, name, parameter)
        for part in parts
        for module in part.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_floating_point() and parameter.itemsize < 4
    ]
    recomputing: list[Any] = [m for m in whole.modules() if getattr(m, "gradient_checkpointing", False)]
    try:
        for module, name, parameter in held:
            module._parameters[name] = parameter.detach().float()  # type: ignore[assignment]
        for module in recomputing:
            module.gradient_checkpointing = False
        yield
    finally:
        for module, name, parameter in held:
            module._parameters[name] = parameter
        for module in recomputing:
            module.gradient_checkpointing = True


def _constant(cond: Conditioning) -> Conditioning:
    """The same without a graph."""
    pooled = None if cond.pooled is None else cond.pooled.detach()
    return replace(cond, embeds=cond.embeds.detach(), pooled=pooled)


def _recomputes(module: Any) -> bool:
    """Whether gradient checkpointing is on: a UNet keeps it in its blocks."""
    first = module.down_blocks[0] if hasattr(module, "down_blocks") else module
    return bool(getattr(first, "gradient_checkpointing", False))


def _network(generator: Generator) -> Any:
    return getattr(generator.pipeline, generator.denoiser)


def _random_encoder(generator: Generator, layer: Layer | int, seed: int) -> Any:
    # by way of a key: a pipeline that was itself made under this very seed would be no control
    drawn = Key(seed, 0, (0,)).integers("random encoder", 0, 2**31).item()
    own = _network(generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        config = {**own.config, "encoder_hid_dim_type": None}  # no part of a user adapter
        network: Any = type(own).from_config(config if generator.denoiser == UNET else own.config)
    if isinstance(layer, int):
        del network.transformer_blocks[layer + 2 :]  # the next one says where to stop
    else:
        network.up_blocks, network.conv_out = nn.ModuleList(), nn.Identity()
    return network.to(generator.device).eval().requires_grad_(False)


def _require_layer(network: Any, layer: Layer | int) -> None:
    is_unet = hasattr(network, "down_blocks")
    if isinstance(layer, int) and not is_unet:
        check_block(network, layer)
    elif not isinstance(layer, str):
        raise UserError(
            f"layer is {layer}: blocks go by number in transformers, and this model is a UNet; choose down_last, "
            "mid or all_down"
        )
    elif not is_unet:
        count = len(network.transformer_blocks)
        raise UserError(
            f"layer is {layer}, which is of UNets, and this model is a transformer; name one of its blocks by its "
            f"number, 0 to {count - 1} (half-way is {count // 2})"
        )
    elif layer == "mid" and network.mid_block is None:
        raise UserError("layer is mid, and this UNet has no mid block; choose down_last or all_down")
