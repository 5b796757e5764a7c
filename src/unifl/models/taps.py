"""What a block of a diffusers transformer hands on, without evaluating the blocks behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError


def tap_block(
    transformer: nn.Module, number: int, evaluate: Callable[[], object]
) -> Float[Tensor, "b tokens d"]:
    """The hidden states of the picture's tokens behind a block.

    The evaluation ends where the next module is entered, and not in the block itself: gradient checkpointing has then
    finished with the block and can run it again.

    Args:
        transformer: With `transformer_blocks` and, behind them, `norm_out` (Stable Diffusion 3, PixArt).
        number: Of the block, from 0.
        evaluate: Calls the transformer.

    Raises:
        UserError: No transformer, or no such block.
    """
    check_block(transformer, number)
    blocks: Any = transformer.transformer_blocks
    behind: Any = blocks[number + 1] if number + 1 < len(blocks) else transformer.norm_out

    def stop(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(inputs[0] if inputs else named["hidden_states"])

    hook = behind.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        evaluate()
    except _Reached as reached:
        return reached.hidden_states
    finally:
        hook.remove()
    raise RuntimeError(f"the evaluation never came to the module behind block {number}")


def check_block(transformer: nn.Module, number: int) -> None:
    """Refuse a block that is not there.

    Raises:
        UserError: See `tap_block`.
    """
    blocks: Any = getattr(transformer, "transformer_blocks", None)
    if blocks is None or not hasattr(transformer, "norm_out"):
        raise UserError(
            f"a {type(transformer).__name__} has no row of transformer blocks; name a layer of a UNet: down_last, mid "
            "or all_down"
        )
    if not 0 <= number < len(blocks):
        raise UserError(f"layer is {number}, and this transformer has the blocks 0 to {len(blocks) - 1}")


class _Reached(Exception):
    def __init__(self, hidden_states: Tensor) -> None:
        super().__init__()
        self.hidden_states = hidden_states
