"""The `world:` names of recipes: what the package ships, loaded when it is asked for and kept.

    world:pipeline
    world:rewards/color|layout|lighting|detail|global      world:levels (their hinge levels)
    world:critics/structure|layout|style
    world:prompts|scenes|curated                           training data
    world:validation                                       prompts for choosing settings
    world:judges/validation

The judge of final figures is not among them: whoever gives such figures hands it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from unifl.errors import UserError, nearest
from unifl.evaluation.judge import Judge
from unifl.methods.base import Source

PREFIX = "world:"
_VALIDATION_SEED = 61  # not the seed of the training prompts, and not that of final figures
_VALIDATION_PROMPTS = 512


def pipeline(name: str) -> str:
    """The packaged pipeline as a folder."""
    known(name.removeprefix(PREFIX), ["pipeline"], "model")
    from unifl.world.assets import PIPELINE

    require(PIPELINE / "model_index.json")
    return str(PIPELINE)


def settings(num_steps: int) -> dict[str, Any]:
    """Guidance and spacing of the packaged model, chosen by the validation judge at 4 or at 20 steps."""
    from unifl.world.assets import ASSETS, baselines

    require(ASSETS / "baselines.json")
    recorded = baselines()
    closest = min(recorded, key=lambda number: abs(int(number) - num_steps))
    best = recorded[closest]["best"]
    return {"guidance": best["guidance"], "spacing": best["spacing"]}


def part(name: str, family: str) -> Any:
    """A reward or a critic, by `world:<family>/<name>`."""
    group, _, entry = name.removeprefix(PREFIX).partition("/")
    known(group, [family], "part")
    entries = _family(family)
    known(entry, entries, family.removesuffix("s"))
    return entries[entry]


@lru_cache(maxsize=2)
def _family(family: str) -> Mapping[str, Any]:
    from unifl.world.assets import ASSETS, load_critics, load_rewards

    require(ASSETS / family / "trunk.safetensors")
    return load_rewards() if family == "rewards" else load_critics()


def levels(name: str) -> dict[str, float]:
    """Hinge levels of the packaged rewards."""
    known(name.removeprefix(PREFIX), ["levels"], "levels")
    from unifl.world.assets import ASSETS, hinge_levels

    require(ASSETS / "rewards" / "levels.json")
    return hinge_levels()


@lru_cache(maxsize=4)
def source(name: str) -> Source:
    """Data of the embedded world."""
    name = name.removeprefix(PREFIX)
    known(name, ["prompts", "scenes", "curated", "validation"], "data")
    if name == "validation":
        from unifl.world.scenes import sample_prompts

        return sample_prompts(_VALIDATION_PROMPTS, seed=_VALIDATION_SEED, held_out=False)
    from unifl.world.assets import load_source

    found: Source = load_source(name)
    return found


def validation_judge() -> Judge:
    """The judge by which settings may be chosen."""
    from unifl.world.assets import load_judge

    require_judge("validation")
    return load_judge("validation")


def require_judge(name: str) -> None:
    """Check that a judge's weights are here."""
    from unifl.world.assets import ASSETS

    require(ASSETS / "judges" / f"{name}.safetensors")


def known(name: str, names: Iterable[str], what: str) -> None:
    """Check a name.

    Raises:
        UserError: It is not among `names`; with the nearest one that is.
    """
    names = list(names)
    if name in names:
        return
    guess = nearest(name, names)
    hint = f"did you mean {guess!r}?" if guess else f"there is {', '.join(names)}"
    raise UserError(f"the world has no {what} {name!r}; {hint}")


def require(path: Path) -> None:
    """Check that a file of the package is here.

    Raises:
        UserError: It is not.
    """
    if not path.exists():
        raise UserError(
            f"the weights of the embedded world are not here ({path} is missing); install the package from a wheel "
            "or a complete checkout, or make them with `unifl world build FOLDER`"
        )
