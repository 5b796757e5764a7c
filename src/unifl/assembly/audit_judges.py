"""Who judges an audit: the rewards of the run's recipe, and judges that took no part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unifl.assembly import resolve
from unifl.assembly.fingerprint import fingerprint
from unifl.assembly.objects import is_dotted, made
from unifl.assembly.on_pictures import on_pictures
from unifl.assembly.part import Part, as_part
from unifl.assembly.recipe import Recipe
from unifl.errors import UserError
from unifl.evaluation.audit_look import HELD_OUT, REWARD, Scorer
from unifl.evaluation.judge import Judge
from unifl.evaluation.suite import score_images

_GOLD, _WORLD_JUDGES = "world:judges/gold", "world:judges/"
_VALIDATION = "world:judges/validation"
EXPERT = "expert"


@dataclass(frozen=True)
class Scorers:
    """Everything that scores the pictures of an audit, by the name of its number.

    Attributes:
        named: The scorers.
        fingerprints: What lies behind the name of each, whose weights may be replaced.
    """

    named: dict[str, Scorer]
    fingerprints: dict[str, str]


def scorers_of(
    recipe: Recipe, asked: Mapping[str, str | Part], *, device: torch.device | str = "cpu"
) -> Scorers:
    """The rewards that trained, and the judges that did not.

    Args:
        recipe: Of the run.
        asked: Held-out judges by name; none takes those of the recipe, see `default_judges`.
        device: Where they go.

    Raises:
        UserError: A run without a reward on pixels, no judge, a judge that is not there, that trained, that reads
            latents, or that is the gold judge.
    """
    given = trained(recipe)
    parts = asked or default_judges(recipe)
    if not parts:
        raise UserError(
            "the run's recipe names no judge that is held out (monitor.rewards, validation), and without one nothing "
            "can be said; name one that did not train: --judge pickscore, --judge package.module:name"
        )
    _require_held_out(parts, given)
    opened = resolve.rewards(given, device=device)
    shown = {name: on_pictures(one, device=device) for name, one in opened.items()}
    rewards = {name: one for name, one in shown.items() if one.space == "pixel"}
    if not rewards:
        raise UserError(
            "all rewards of the run read latents, and an audit scores pictures; audit a run with a reward on pixels"
        )
    named: dict[str, Scorer] = {f"{REWARD}{name}": one for name, one in rewards.items()}
    prints = {f"{REWARD}{name}": fingerprint(one, given[name]) for name, one in rewards.items()}
    for name, part in parts.items():
        named[f"{HELD_OUT}{name}"], prints[f"{HELD_OUT}{name}"] = _judge(part, name, device)
        for reward in rewards:  # a copy of its files, say
            if prints[f"{REWARD}{reward}"] == prints[f"{HELD_OUT}{name}"]:
                raise _trained(name, reward)
    return Scorers(named, prints)


def trained(recipe: Recipe) -> dict[str, str | Part]:
    """What the run followed: its rewards, and the expert of a latent proxy.

    Raises:
        UserError: It followed none.
    """
    given = dict(recipe.rewards)
    if recipe.expert is not None:
        given[EXPERT] = recipe.expert
    if not given:
        raise UserError(
            f"the run followed no reward (its method is {recipe.method.kind}), so none can have been followed too far; "
            "audit a run whose recipe has `rewards`"
        )
    return given


def default_judges(recipe: Recipe) -> dict[str, str | Part]:
    """The recipe's monitor rewards and validation judge; of a run in the embedded world, at least the latter."""
    found: dict[str, str | Part] = {}
    if recipe.monitor is not None:
        found |= recipe.monitor.rewards
    if recipe.validation is not None:
        found["validation"] = recipe.validation.judge
    elif not found and in_world(recipe):
        found["validation"] = _VALIDATION
    return found


def in_world(recipe: Recipe) -> bool:
    """Whether a run follows a reward of the embedded world, or starts from its model."""
    rewards = [part for given in recipe.rewards.values() for part in as_part(given).leaves()]
    paths = [recipe.model.pretrained_model_name_or_path, *(part.path for part in rewards)]
    return any(path.startswith(resolve.WORLD) for path in paths)


def _require_held_out(judges: Mapping[str, str | Part], given: Mapping[str, str | Part]) -> None:
    for name, part in judges.items():
        if _path(part) == _GOLD:
            raise UserError(
                f"the judge {name} is the gold judge, which gives final figures and chooses nothing; take {_VALIDATION}"
            )
        same = [other for other, its in given.items() if _sources(its) & _sources(part)]
        if same:
            raise _trained(name, same[0])


def _trained(judge: str, reward: str) -> UserError:
    return UserError(f"the judge {judge} is the reward {reward}, which trained; name one that did not")


def _judge(given: str | Part, name: str, device: torch.device | str) -> tuple[Scorer, str]:
    """A judge's overall score, or a scorer as it is; and the fingerprint of either."""
    part = given if isinstance(given, Part) else resolve.named(given)
    is_own = is_dotted(part.path) and not part.path.startswith(resolve.SCORER)
    if is_own or part.path.startswith(_WORLD_JUDGES):
        found = made(part) if is_own else resolve.judge(part.path)
        if isinstance(found, Judge):
            return _overall(found), fingerprint(found, part)
    scorer = on_pictures(resolve.feedback(part, name=name, device=device), device=device)
    if scorer.space != "pixel":
        raise UserError(
            f"the judge {name} reads latents, and an audit scores pictures; name one that reads pixels"
        )
    return scorer, fingerprint(scorer, part)


def _overall(judge: Judge) -> Scorer:
    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.from_numpy(score_images(judge, images, prompts).values["overall"][:, 0])

    return score


def _path(part: str | Part) -> str:
    return part.path if isinstance(part, Part) else part


def _sources(part: str | Part) -> set[tuple[str, str]]:
    """What a reward comes from, however it is spelt or opened; arguments belong to what has them."""
    whole = part if isinstance(part, Part) else resolve.named(part)
    return {_source(one) for one in whole.leaves()}


def _source(part: Part) -> tuple[str, str]:
    path = str(Path(part.path).expanduser().resolve()) if resolve.is_file(part.path) else part.path
    return path, repr(sorted(part.kwargs.items()))
