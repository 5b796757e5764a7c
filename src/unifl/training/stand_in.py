"""Networks that have shapes and no weights take part in a dry run: what they would hold is counted, not held.

A network on torch's meta device cannot compute. Within `stand_ins`, each of its calls answers zeros of the right
shape and books, as tensors on the meta device, the bytes that the call would have taken: those that autograd keeps
for backward, and the most at any one time in either direction. They come from one evaluation of the real code,
forward and backward, on torch's fake tensors, for each kind of call. Everything around it (rollouts, losses,
feedback) runs as always, so that a plan for a large model is one dry run like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from unifl.models.roles import Roles
from unifl.training.memory import LiveBytes

_CPU = torch.device("cpu")
_BEFORE_TENSORS = 3  # arguments of `_Booked` that are no tensors


@contextmanager
def stand_ins(
    pipeline_networks: dict[str, nn.Module], roles: Roles, *, for_gpu: bool = False
) -> Iterator[None]:
    """Within the block, networks without weights answer zeros and book their memory; others are left alone.

    Args:
        pipeline_networks: As `Generator.modules` gives them.
        roles: Weight sets of the same generator, whose copies stand in as well.
        for_gpu: Follow CUDA's rules of mixed precision, which evaluate norms in float32; those of the CPU do not.
    """
    with ExitStack() as scope:
        for network in _called(pipeline_networks, roles):
            if has_shapes_only(network):
                vars(network)["forward"] = _StandIn(
                    network, roles, for_gpu
                )  # shadows the method of the class
                scope.callback(vars(network).pop, "forward")
        yield


def has_shapes_only(network: nn.Module) -> bool:
    """Whether some weights of a network have no values."""
    return any(parameter.is_meta for parameter in network.parameters())


def _called(networks: dict[str, nn.Module], roles: Roles) -> list[nn.Module]:
    """The modules that are called: whole networks in all roles, and those parts that are called by themselves.

    The latter are the autoencoder's, and of a denoiser what `unifl.models.features` evaluates.
    """
    found = [roles.module(component, role) for component in roles.components for role in roles.names]
    found += [part for network in found for part in _encoder_parts(network)]
    found += [part for name, network in networks.items() if name == "vae" for part in network.children()]
    return list(dict.fromkeys(found))


def _encoder_parts(network: nn.Module) -> list[nn.Module]:
    if not isinstance(network, UNet2DConditionModel):
        return []
    single = [
        network.time_embedding,
        getattr(network, "add_embedding", None),
        network.conv_in,
        network.mid_block,
    ]
    return [*network.down_blocks, *(part for part in single if isinstance(part, nn.Module))]


@contextmanager
def _themselves(network: nn.Module) -> Iterator[None]:
    """Within the block, the parts of a network are no stand-ins."""
    inner = [module for module in network.modules() if module is not network]
    held = [(m, vars(m).pop("forward")) for m in inner if isinstance(vars(m).get("forward"), _StandIn)]
    try:
        yield
    finally:
        for module, forward in held:
            vars(module)["forward"] = forward


@dataclass(frozen=True)
class _Cost:
    """Bytes of one kind of call, and the shape of its answer.

    Attributes:
        saved: Kept for backward.
        forward: The most at any one time of the forward pass.
        backward: The most at any one time of the backward pass, what was kept included, where gradients of weights
            are added to those that are there.
        backward_afresh: The same where there are none yet, and they are kept one by one.
        answer: (shape, dtype, whether a gradient comes back) of each tensor.
        others: Leaves of the answer that are no tensors, None for tensors.
        structure: How leaves make up the answer.
    """

    saved: int
    forward: int
    backward: int
    backward_afresh: int
    answer: list[tuple[torch.Size, torch.dtype, bool]]
    others: list[Any]
    structure: TreeSpec


class _StandIn:
    """Takes the place of a module's `forward`."""

    def __init__(self, network: nn.Module, roles: Roles, for_gpu: bool) -> None:
        self._network, self._roles = network, roles
        self._rules = _norms_in_float32 if for_gpu else nullcontext
        self._forward = network.forward
        self._costs: dict[Any, _Cost] = {}
        self._gradients = _Gradients()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kind = [_kind(leaf) for leaf in leaves]
        key = (self._roles.current, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), *kind)
        if key not in self._costs:
            self._costs[key] = self._measure(args, kwargs)
        cost = self._costs[key]
        trained = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        answer = iter(_Booked.apply(cost, self._gradients, trained, *trained, *inputs))
        leaves = [next(answer) if other is None else other[0] for other in cost.others]
        return tree_unflatten(leaves, cost.structure)

    def _measure(self, args: Any, kwargs: Any) -> _Cost:
        """One evaluation on fake tensors, as if they were on the CPU: attention is fused there as on a GPU."""
        with _disable_current_modes():
            mode = FakeTensorMode()
            named = chain(self._network.named_parameters(), self._network.named_buffers())
            weights = {name: _fake(mode, tensor) for name, tensor in named}
            args, kwargs = tree_map_only(Tensor, lambda tensor: _fake(mode, tensor), (args, kwargs))
            with (
                mode,
                _reparametrize_module(self._network, weights),
                _themselves(self._network),
                self._rules(),
                LiveBytes(weights.values()) as watch,
            ):
                output = self._forward(*args, **kwargs)
                leaves, structure = tree_flatten(output)
                found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
                saved, forward = sum(watch.take_saved().values()), watch.peak
                watch.peak = watch.peak_with_aside = watch.now
                ends = [tensor for tensor in found if tensor.requires_grad]
                if ends:
                    trained = [weight for weight in weights.values() if weight.requires_grad]
                    for weight in trained:
                        weight.register_post_accumulate_grad_hook(partial(_set_aside, watch))
                    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if _trains(leaf)]
                    torch.autograd.backward(
                        ends, [torch.ones_like(end) for end in ends], inputs=trained + inputs
                    )
                return _Cost(
                    saved=saved,
                    forward=forward,
                    backward=watch.peak,
                    backward_afresh=watch.peak_with_aside,
                    answer=[(tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in found],
                    others=[None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves],
                    structure=structure,
                )


def _set_aside(watch: LiveBytes, weight: Tensor) -> None:
    """Let go of a gradient, so that both peaks come from one pass."""
    assert weight.grad is not None
    watch.aside += weight.grad.nbytes
    weight.grad = None


class _Gradients:
    """What is held of the gradients of one network's weights while a backward pass is under way.

    Where several evaluations are in one graph, autograd sums a weight's gradients apart, and hands the sum to the
    weight when the last of them is done.
    """

    def __init__(self) -> None:
        self._open: WeakSet[_Evaluation] = WeakSet()
        self._summing = False

    def open(self) -> _Evaluation:
        """Note an evaluation with a graph, for as long as that is there."""
        if not self._open:
            self._summing = False
        evaluation = _Evaluation()
        self._open.add(evaluation)
        return evaluation

    def close(self, evaluation: _Evaluation, weights: list[nn.Parameter]) -> tuple[bool, bool]:
        """The backward pass of an evaluation.

        Returns:
            Whether gradients are added to some that are there, and whether a sum begins, which takes its room.
        """
        self._open.discard(evaluation)
        unfinished = len(self._open) > 0
        begins = unfinished and not self._summing
        there = not unfinished and all(weight.grad is not None for weight in weights)
        adds = self._summing or there
        self._summing = unfinished
        return adds, begins


class _Evaluation:
    """One call of a network, alive as long as its graph."""


@contextmanager
def _norms_in_float32() -> Iterator[None]:
    """Under autocast, norms in float32 wherever they run (https://docs.pytorch.org/docs/stable/amp.html, CUDA ops).

    The functions themselves are replaced: a mode of torch would not reach what checkpointing recomputes.
    """

    def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return norm(*args, **kwargs)
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.float(), (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return norm(*args, **kwargs)

        return run

    originals = {name: vars(F)[name] for name in ("group_norm", "layer_norm")}
    vars(F).update({name: in_float32(norm) for name, norm in originals.items()})
    try:
        yield
    finally:
        vars(F).update(originals)


class _Booked(torch.autograd.Function):
    """Zeros with a graph that holds as much as the real one."""

    @staticmethod
    def forward(
        ctx: Any, cost: _Cost, gradients: _Gradients, weights: list[nn.Parameter], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        _book(cost.forward)
        ctx.cost, ctx.of_weights, ctx.weights = cost, gradients, weights
        ctx.evaluation = gradients.open() if any(ctx.needs_input_grad) else None
        ctx.gradients = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        ctx.save_for_backward(_book(cost.saved))
        answer = [torch.zeros(shape, dtype=dtype) for shape, dtype, _ in cost.answer]
        graded = [with_graph for *_, with_graph in cost.answer]
        ctx.mark_non_differentiable(
            *(tensor for tensor, with_graph in zip(answer, graded, strict=True) if not with_graph)
        )
        return tuple(answer)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        (held,) = ctx.saved_tensors
        adds, begins = ctx.of_weights.close(ctx.evaluation, ctx.weights)
        room = ctx.cost.backward if adds else ctx.cost.backward_afresh
        _book(max(0, room - held.nbytes))
        given = []
        for number, ((shape, dtype, device), need) in enumerate(
            zip(ctx.gradients, ctx.needs_input_grad[_BEFORE_TENSORS:], strict=True)
        ):
            if begins and number < len(ctx.weights):
                gradient = torch.zeros(shape, dtype=dtype, device=device)
            else:  # stretched over the shape: it takes its room when autograd stores it, after what was kept is gone
                gradient = torch.zeros((), dtype=dtype, device=device).expand(shape)
            given.append(gradient if need else None)
        return (None,) * _BEFORE_TENSORS + tuple(given)


def _book(size: int) -> Tensor:
    """A tensor that is as large for whoever counts, and holds nothing."""
    return torch.empty(size, dtype=torch.uint8, device="meta")


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """The same shape without values, said to be on the CPU."""
    values = tensor.detach()
    fake = FakeTensor(mode, values, _CPU) if values.is_meta else mode.from_tensor(values)
    return fake.requires_grad_(tensor.requires_grad)


def _kind(leaf: Any) -> Any:
    """What an argument's part in the cost depends on."""
    return (leaf.shape, leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else repr(leaf)


def _trains(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad
