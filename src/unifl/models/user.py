"""A model that is told for whom it draws: attention to the user beside the frozen attention to the prompt.

Decoupled cross-attention (IP-Adapter, Ye et al., arXiv 2308.06721; PPD, Dang et al., arXiv 2501.06655):

    out = Attn(Q, K, V) + scale * Attn(Q, u Wk', u Wv')

Q, K and V belong to the model and stay as they are. u are tokens that a small network makes of the embedding of a user;
this network, Wk' and Wv' train. They are diffusers' own modules in the places where diffusers looks for them, so that
what was trained is an IP-Adapter (of the FaceID layout, whose number of tokens is free) for every diffusers pipeline.

Several of them can sit in one UNet. Each role that has weights is one of them, switched on by its scale.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterFaceIDImageProjection, MultiIPAdapterImageProjection
from torch import Tensor, nn
from torch.nn import Parameter

from unifl.errors import UserError
from unifl.models.conditioning import Conditioning
from unifl.models.roles import START_ROLES, STUDENT, Roles

COMPONENT = "unet"
"""The network that has the adapter."""


@dataclass(kw_only=True)
class UserTraining:
    """Train attention to an embedding of the user; the model itself stays as it is and serves as the reference."""

    kind: Literal["user"] = "user"
    embedding_dim: int
    """Numbers e of one vector of an embedding; a user is one vector or several."""
    tokens: int = 4
    """Tokens that the attention sees for each vector."""
    scale: float = 1.0
    """Of the attention to the user while training. Saved adapters hold it in their weights, and draw the same at
    diffusers' scale of 1."""

    def __post_init__(self) -> None:
        if self.embedding_dim < 1:
            raise UserError(
                f"embedding_dim is {self.embedding_dim}; it is the length of one vector of an embedding, 1 or more"
            )
        if self.tokens < 1:
            raise UserError(
                f"tokens is {self.tokens}; the attention to the user needs 1 or more (4 are common)"
            )
        if not self.scale > 0:
            raise UserError(f"scale is {self.scale}; it must be above 0, or the user would have no effect")


class UserRoles(Roles):
    """Every role is one adapter in the same UNet; the reference has none, and is the model without adapters."""

    def __init__(self, components: Mapping[str, nn.Module], settings: UserTraining, *, seed: int = 0) -> None:
        """Adds the student's adapter and freezes everything else.

        The student begins as the model: Wv' is zero. Wk' begins as the model's own Wk.

        Args:
            components: All networks.
            settings: Sizes.
            seed: Decides the first values of the network that makes tokens.

        Raises:
            UserError: No UNet with attention to a prompt, or one that has an adapter of this kind already.
        """
        super().__init__(components)
        self.settings = settings
        for module in components.values():
            module.requires_grad_(False)
        self._processors, self._projections = _add(_checked(components), settings, seed)
        self._slots = [STUDENT]
        for parameter in self.parameters(STUDENT).values():
            parameter.requires_grad_(True)
        self._switch(STUDENT)

    def module(self, component: str, role: str) -> nn.Module:
        """The one network of the component."""
        return self.components[component]

    def trains(self, component: str) -> bool:
        """Whether it is the UNet."""
        return component == COMPONENT

    def parameters(self, role: str) -> dict[str, Parameter]:
        """The adapter of a role, {component.path: parameter}; nothing for start roles."""
        if role in START_ROLES:
            return {}
        slot = self._slots.index(role)
        found: dict[str, Parameter] = {}
        for name, processor in self._processors.items():
            found[f"{COMPONENT}.{name}.to_k_ip.weight"] = processor.to_k_ip[slot].weight
            found[f"{COMPONENT}.{name}.to_v_ip.weight"] = processor.to_v_ip[slot].weight
        for name, parameter in self._projections[slot].named_parameters():
            found[f"{COMPONENT}.encoder_hid_proj.{name}"] = parameter
        return found

    def adapter_parameters(self) -> Iterator[Parameter]:
        """Those of all adapters, whatever their role."""
        yield from self._projections.parameters()
        for processor in self._processors.values():
            yield from processor.parameters()

    @property
    def num_copies(self) -> int:
        """None: all roles share the base weights."""
        return 0

    def image_embeds(self, cond: Conditioning) -> list[Tensor]:
        """What the UNet takes for the users of a batch: the same for every adapter in it, n rows per sample.

        Raises:
            UserError: Embeddings of another width, or another number of users than of prompts.
        """
        user, width = cond.user, self.settings.embedding_dim
        if user is None:
            user = cond.embeds.new_zeros(len(cond), 1, width)
        if user.shape[-1] != width:
            raise UserError(
                f"embeddings of users have {user.shape[-1]} numbers and the adapter takes {width}; set embedding_dim "
                "to what the embeddings have"
            )
        if len(user) != len(cond):  # the attention would mix several users of one row without a message
            raise UserError(f"there are {len(user)} users for {len(cond)} prompts; give one per prompt")
        return [user] * len(self._slots)

    def _make(self, role: str) -> None:
        if role in START_ROLES:
            return
        student = self._slots.index(STUDENT)
        for processor in self._processors.values():
            for layers in (processor.to_k_ip, processor.to_v_ip):
                layers.append(copy.deepcopy(layers[student]).requires_grad_(False))
            processor.num_tokens = [*processor.num_tokens, self.settings.tokens]
        self._projections.append(copy.deepcopy(self._projections[student]).requires_grad_(False))
        self._slots.append(role)
        self._switch(self.current)

    def _switch(self, role: str) -> None:
        # diffusers leaves out an attention whose scale is 0
        scales = [self.settings.scale if slot == role else 0.0 for slot in self._slots]
        for processor in self._processors.values():
            processor.scale = list(scales)

    def _outside(self, component: str) -> str:
        return (
            "it lies outside the user adapter: the reference is the same network with the adapter off and would change "
            "with it. Freeze it (requires_grad_(False)), or use full fine-tuning, which keeps a copy as reference"
        )


def with_user(roles: Roles, cond: Conditioning, added: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `added_cond_kwargs` of diffusers with the users of a batch.

    Args:
        roles: Of the generator.
        cond: On the device of the network.
        added: What there is already.

    Raises:
        UserError: See `Generator.denoise`.
    """
    if isinstance(roles, UserRoles):
        return {**(added or {}), "image_embeds": roles.image_embeds(cond)}
    if cond.user is not None:
        raise UserError(
            "embeddings of users were given to a model that has no adapter for them; load it with "
            "train=UserTraining(embedding_dim=...)"
        )
    return added


def cross_attentions(unet: nn.Module) -> list[str]:
    """Paths of the layers that look at the prompt, in the order in which diffusers numbers them."""
    processors: dict[str, Any] = unet.attn_processors  # type: ignore[assignment]
    return [name.removesuffix(".processor") for name in processors if not name.endswith("attn1.processor")]


def _checked(components: Mapping[str, nn.Module]) -> UNet2DConditionModel:
    unet = components.get(COMPONENT)
    if not isinstance(unet, UNet2DConditionModel) or not cross_attentions(unet):
        raise UserError(
            "a user adapter needs a UNet with attention to the prompt, which this model does not have"
        )
    if unet.encoder_hid_proj is not None:
        raise UserError(
            "the UNet carries an IP-Adapter already, which would be no part of any role; call "
            "pipeline.unload_ip_adapter() first"
        )
    return unet


def _add(
    unet: UNet2DConditionModel, settings: UserTraining, seed: int
) -> tuple[dict[str, IPAdapterAttnProcessor2_0], nn.ModuleList]:
    """Puts the modules where `load_ip_adapter` of diffusers puts them, in float32 over a base in half precision."""
    has_shapes_only = unet.device.type == "meta"
    dtype = unet.dtype if unet.dtype.itemsize >= 4 else torch.float32
    processors: dict[str, IPAdapterAttnProcessor2_0] = {}
    with torch.random.fork_rng(devices=[]), torch.device("meta" if has_shapes_only else "cpu"):
        torch.manual_seed(seed)  # torch fills new layers from the global generator
        projection = IPAdapterFaceIDImageProjection(
            image_embed_dim=settings.embedding_dim,
            cross_attention_dim=unet.config.cross_attention_dim,
            num_tokens=settings.tokens,
        )
        for path in cross_attentions(unet):
            own = unet.get_submodule(path).to_k
            processor = IPAdapterAttnProcessor2_0(own.out_features, own.in_features, (settings.tokens,))
            if not has_shapes_only:
                with torch.no_grad():
                    processor.to_k_ip[0].weight.copy_(own.weight)
                    processor.to_v_ip[0].weight.zero_()
            processors[f"{path}.processor"] = processor.to(unet.device, dtype)
    unet.set_attn_processor({**unet.attn_processors, **processors})
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection.to(unet.device, dtype)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    return processors, unet.encoder_hid_proj.image_projection_layers
