"""Linear layers without activations, as two published heads have them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from unifl.errors import UserError


def linear_head(state: Mapping[str, Tensor], *, what: str) -> nn.Sequential:
    """The layers that a state holds; dropout between them, which takes up numbers, is left out.

    Args:
        state: `layers.0.weight`, `layers.0.bias`, `layers.2.weight` and so on.
        what: Name for messages.

    Raises:
        UserError: Weights that are missing or surplus.
    """
    weights = [key for key in state if key.startswith("layers.") and key.endswith(".weight")]
    weights.sort(key=lambda key: int(key.split(".")[1]))
    wanted = {key.replace("weight", end) for key in weights for end in ("weight", "bias")}
    if wanted != set(state) or not weights:
        raise UserError(
            f"these are no weights of {what} ({', '.join(sorted(state)[:3])}, ...); needed are layers.0.weight, "
            "layers.0.bias and so on"
        )
    layers = nn.Sequential(*(nn.Linear(state[key].shape[1], state[key].shape[0]) for key in weights))
    for layer, key in zip(layers, weights, strict=True):
        layer.load_state_dict({"weight": state[key], "bias": state[key.replace("weight", "bias")]})
    return layers
