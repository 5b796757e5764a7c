"""A reward on latents that follows another one: the latent proxy of RG-LCD (Li et al., arXiv 2403.11027).

Two towers in the manner of CLIP: one reads latents, the other prompts, and the score is the cosine of what they say. It
is differentiable whatever the expert is that it follows, and needs no decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from unifl.errors import UserError
from unifl.feedback.base import Space
from unifl.feedback.latent_towers import ClipText, HashedText, LatentResNet, LatentViT

_MAX_SCALE = 100.0  # CLIP's, arXiv 2103.00020, section 2.5
_MAX_CACHED = 100_000  # prompts


@dataclass(kw_only=True)
class LatentProxyConfig:
    """The shape of a latent proxy; the defaults are those of RG-LCD's ViT, for latents of 512 px."""

    channels: int = 4
    """Of the latents."""
    size: int = 64
    """Side of the latents that it is pre-trained on; for other sizes a ViT interpolates its places."""
    scaling_factor: float = 0.18215
    """Of the autoencoder: the towers read scaled latents / scaling_factor + shift."""
    shift: float = 0.0
    """Of the autoencoder (`shift_factor`), 0 where it has none."""
    tower: Literal["vit", "resnet"] = "vit"
    """What reads latents."""
    width: int = 512
    """Of a ViT's tokens, or of the first stage of a ResNet."""
    depth: int = 12
    """Blocks; a ResNet has two per stage and doubles its width from one stage to the next."""
    heads: int = 8
    """Of a ViT's blocks."""
    patch: int = 4
    """Side of a ViT's patches."""
    embedding: int = 1024
    """Width in which latents and prompts are compared."""
    text: Literal["clip", "hashed"] = "clip"
    """What reads prompts: a CLIP text model that is handed over, or a small network on hashed words."""
    text_width: int = 128
    """Of hashed words."""
    text_depth: int = 2
    """Blocks over hashed words."""
    text_heads: int = 4
    """Of these blocks."""

    def __post_init__(self) -> None:
        for name in ("channels", "size", "width", "depth", "heads", "patch", "embedding"):
            _require_positive(name, getattr(self, name))
        for name in ("scaling_factor", "text_width", "text_depth", "text_heads"):
            _require_positive(name, getattr(self, name))
        if self.text_width % self.text_heads or (self.tower == "vit" and self.width % self.heads):
            raise UserError("a proxy's width must be a multiple of its heads; change one of the two")
        if self.tower == "vit" and self.size % self.patch:
            raise UserError(
                f"latents of side {self.size} are not cut by patches of {self.patch}; change `patch`"
            )
        if self.tower == "resnet" and self.width % 8:
            raise UserError(f"the width of a proxy's ResNet is {self.width}; it must be a multiple of 8")


class LatentProxy(nn.Module):
    """A Feedback on scaled latents: the cosine of latent and prompt, in [-1, 1].

    `forward` lets gradients through to the trainable parameters, `judge` to the latents alone. There is no dropout, and
    the network stays in eval mode. Prompts are encoded once each while the text tower is frozen.

    Args:
        config: Its shape.
        text: What reads prompts, with `config.embedding` numbers per prompt.

    Attributes:
        image: The tower on latents.
        text: The tower on prompts.
        logit_scale: Logarithm of the factor on cosines; the factor never exceeds 100.
    """

    name: str = "proxy"
    space: Space = "latent"
    differentiable: bool = True
    needs: frozenset[str] = frozenset({"prompt"})
    range: tuple[float, float] | None = (-1.0, 1.0)

    def __init__(self, config: LatentProxyConfig, text: HashedText | ClipText) -> None:
        super().__init__()
        self.config = config
        self.image = _image_tower(config)
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._cache: dict[str, Tensor] = {}
        self._cached_state: tuple[int, torch.device] | None = None
        self.eval()

    def train(self, mode: bool = True) -> LatentProxy:
        """Keeps everything in eval mode whatever a training loop asks for."""
        return super().train(False)

    # --- scores ------------------------------------------------------------------------------------------

    def forward(self, latents: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The cosine; see `cosine`."""
        return self.cosine(latents, prompts)

    def cosine(self, latents: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Cosine of each scaled latent with its prompt, with gradients to latents and trainable parameters."""
        return (self.embed_latents(latents) * self.embed_prompts(prompts)).sum(1)

    def logits(self, latents: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """exp(logit_scale) times the cosine."""
        return self.scale() * self.cosine(latents, prompts)

    def judge(self, latents: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The cosine with gradients to the latents only: what the student climbs."""
        with torch.no_grad():
            text = self.embed_prompts(prompts)
        frozen = {name: value.detach() for name, value in self.image.named_parameters()}
        seen = functional_call(self.image, frozen, (self.unscaled(latents),))
        return (F.normalize(seen, dim=1) * text).sum(1)

    def scale(self) -> Float[Tensor, ""]:
        """exp(logit_scale); the parameter is first brought back to where this is at most 100, as CLIP does."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(_MAX_SCALE))
        return self.logit_scale.exp()

    def embed_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """Scaled latents to vectors of length 1."""
        return F.normalize(self.image(self.unscaled(latents)), dim=1)

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b e"]:
        """Prompts to vectors of length 1; a repeated prompt is encoded once."""
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        if self.trains_text:
            found = F.normalize(self.text(list(distinct)), dim=1)
        else:
            found = torch.stack(self._cached(list(distinct)))
        return found[[distinct[prompt] for prompt in prompts]]

    def unscaled(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents as the autoencoder made them, which is what the towers read."""
        return latents.to(self.logit_scale.dtype) / self.config.scaling_factor + self.config.shift

    def _cached(self, prompts: list[str]) -> list[Tensor]:
        # weights that were loaded or moved in the meantime make what was encoded before worthless
        version = sum(parameter._version for parameter in self.text.parameters())
        state = (version, self.logit_scale.device)
        if state != self._cached_state or len(self._cache) + len(prompts) > _MAX_CACHED:
            self._cache, self._cached_state = {}, state
        with torch.inference_mode(False), torch.no_grad():  # a later call may need a graph through the cosine
            for prompt in prompts:
                if prompt not in self._cache:
                    # alone, as a batch of another size may differ in the last bits, and a resumed run starts with
                    # an empty cache
                    self._cache[prompt] = F.normalize(self.text([prompt]), dim=1)[0]
        return [self._cache[prompt] for prompt in prompts]

    # --- what trains -------------------------------------------------------------------------------------

    @property
    def trains_text(self) -> bool:
        """Whether any parameter of the text tower trains."""
        return any(parameter.requires_grad for parameter in self.text.parameters())

    def unlock(
        self, *, image_blocks: int | None = None, text_blocks: int | None = None, logit_scale: bool = True
    ) -> dict[str, nn.Parameter]:
        """Train the last blocks of each tower with what follows them, and freeze everything else.

        Args:
            image_blocks: Blocks of the tower on latents, counted from its end; 0 freezes the tower with its projection,
                None trains all of it. More than there are means every block, without what comes before the first.
            text_blocks: The same of the tower on prompts.
            logit_scale: Whether the factor on cosines trains.

        Returns:
            See `trainable_parameters`. Hand these to the optimiser, once: nothing here unfreezes a parameter later.
        """
        self.requires_grad_(False)
        for tower, blocks in ((self.image, image_blocks), (self.text, text_blocks)):
            if blocks is None:
                tower.requires_grad_(True)
            elif blocks < 0:
                raise UserError(
                    f"cannot unlock {blocks} blocks of a proxy; choose 0 or more, or null for all"
                )
            elif blocks > 0:
                for module in [*list(tower.blocks)[-blocks:], *tower.ends]:
                    module.requires_grad_(True)
        self.logit_scale.requires_grad_(logit_scale)
        return self.trainable_parameters()

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that ask for a gradient, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    # --- what it fits ------------------------------------------------------------------------------------

    def require_fit(
        self, shape: tuple[int, ...], *, scaling_factor: int | float, shift: int | float = 0.0
    ) -> None:
        """Refuse latents that this proxy was not made for.

        Args:
            shape: (channels, height, width) of one latent.
            scaling_factor: Of the autoencoder that makes the latents.
            shift: Of that autoencoder.

        Raises:
            UserError: Other channels, sides that patches do not divide, another scale.
        """
        config = self.config
        if shape[0] != config.channels:
            raise UserError(
                f"the latent proxy reads {config.channels} channels, but the latents have {shape[0]}; use a proxy that "
                "was pre-trained on latents of this autoencoder"
            )
        if config.tower == "vit" and (shape[1] % config.patch or shape[2] % config.patch):
            raise UserError(
                f"latents of {shape[1]} x {shape[2]} are not cut by the proxy's patches of {config.patch}; choose "
                "another resolution"
            )
        own = (config.scaling_factor, config.shift)
        if not all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(own, (scaling_factor, shift), strict=True)
        ):
            raise UserError(
                f"the latent proxy was made for latents of scale and shift {own}, those of this autoencoder have "
                f"{(scaling_factor, shift)}; use a proxy that was pre-trained on latents of this autoencoder"
            )


def make_proxy(
    config: LatentProxyConfig, *, text_encoder: Any = None, tokenizer: Any = None, seed: int = 0
) -> LatentProxy:
    """A latent proxy before its pre-training, on the CPU, of which everything trains.

    Args:
        config: Its shape.
        text_encoder: For `text: clip`: a CLIP text model, which is copied. The one of a pipeline, or
            `unifl.data.selection.embeddings.load_text_encoder(folder).model`.
        tokenizer: Of that model.
        seed: Of the random weights. The global random state is left as it was.

    Raises:
        UserError: A text encoder that is missing, not wanted, or not a CLIP's.
    """
    if (text_encoder is None or tokenizer is None) == (config.text == "clip"):
        raise UserError(
            "a proxy with `text: clip` needs a text encoder and its tokenizer, one with `text: hashed` takes none"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.text == "clip":
            text: HashedText | ClipText = ClipText(text_encoder, tokenizer, embedding=config.embedding)
        else:
            text = HashedText(
                width=config.text_width,
                depth=config.text_depth,
                heads=config.text_heads,
                embedding=config.embedding,
            )
        return LatentProxy(config, text).requires_grad_(True)


def _image_tower(config: LatentProxyConfig) -> LatentViT | LatentResNet:
    if config.tower == "resnet":
        return LatentResNet(
            channels=config.channels, width=config.width, depth=config.depth, embedding=config.embedding
        )
    return LatentViT(
        channels=config.channels,
        size=config.size,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        patch=config.patch,
        embedding=config.embedding,
    )


def _require_positive(name: str, value: int | float) -> None:
    if not value > 0:
        raise UserError(f"{name} of a latent proxy is {value}; it must be above 0")
