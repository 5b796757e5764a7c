"""What a picture of the embedded world shows: objects, a relation, a style, a background and four qualities.

A *description* is what a caption says; a *scene* adds what a caption does not say (positions, sizes in
pixels, the four quality levels).  Captions are written from descriptions and read back by `parse`, so a
judge can compare a picture with the words of its prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unifl.errors import UserError

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "yellow", "green", "cyan", "blue", "purple")
SIZES = ("small", "large")
STYLES = ("flat", "outline", "hatched", "dotted")
BACKGROUNDS = ("white", "grey", "dark")
RELATIONS = ("left of", "right of", "above", "below")
QUALITIES = ("color", "layout", "lighting", "detail")
COUNT_WORDS = {2: "two", 3: "three"}
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
}
_MIRROR = {"right of": "left of", "below": "above"}
_HELD_OUT_PART = 5  # one combination in five is never trained on


@dataclass(frozen=True)
class Thing:
    """One object as a caption names it."""

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Description:
    """Everything that a caption says.

    `relation` is None for one object, one of RELATIONS for two different places, "row" or "column" for three
    objects (in reading order), and "count" for two or three equal objects.
    """

    things: tuple[Thing, ...]
    relation: str | None
    style: str
    background: str

    @property
    def caption(self) -> str:
        """The sentence that says it."""
        first = self.things[0]
        if self.relation is None:
            body = f"a {first}"
        elif self.relation == "count":
            body = f"{COUNT_WORDS[len(self.things)]} {first.size} {first.color} {PLURALS[first.shape]}"
        elif self.relation in RELATIONS:
            body = f"a {first} {self.relation} a {self.things[1]}"
        else:
            body = f"a {first}, a {self.things[1]} and a {self.things[2]} in a {self.relation}"
        return f"{body}, {self.style} style, {self.background} background"

    @property
    def key(self) -> str:
        """Equal for captions that ask for the same picture ("a left of b" and "b right of a")."""
        things, relation = self.things, self.relation
        if relation in _MIRROR:
            things, relation = things[::-1], _MIRROR[relation]
        return "|".join([*map(str, things), str(relation), self.style, self.background])

    @property
    def held_out(self) -> bool:
        """Whether this full combination is kept for evaluation; decided by a hash of `key`."""
        return (
            int.from_bytes(hashlib.blake2b(self.key.encode(), digest_size=8).digest()) % _HELD_OUT_PART == 0
        )


@dataclass(frozen=True)
class Placed:
    """An object in the picture: centre and radius in units of the picture's side, angle in radians."""

    thing: Thing
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """A description with its hidden degrees of freedom; `quality` follows the order of QUALITIES, in [0, 1]."""

    description: Description
    objects: tuple[Placed, ...]
    quality: tuple[float, float, float, float]
    light: float  # direction that the light comes from, in radians

    @property
    def caption(self) -> str:
        """What the picture is called."""
        return self.description.caption


_THING = rf"({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_THINGS = rf"({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(PLURALS.values())})"
_ENDING = rf", ({'|'.join(STYLES)}) style, ({'|'.join(BACKGROUNDS)}) background"
_PATTERNS = {
    "one": re.compile(rf"a {_THING}{_ENDING}"),
    "two": re.compile(rf"a {_THING} ({'|'.join(RELATIONS)}) a {_THING}{_ENDING}"),
    "three": re.compile(rf"a {_THING}, a {_THING} and a {_THING} in a (row|column){_ENDING}"),
    "count": re.compile(rf"(two|three) {_THINGS}{_ENDING}"),
}


@lru_cache(maxsize=65536)
def parse(caption: str) -> Description:
    """Read a caption back into its description.

    Raises:
        UserError: the caption is not one of the world's sentences.
    """
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(caption.strip())
        if match:
            return _description(kind, match.groups())
    raise UserError(
        f"{caption!r} is not a caption of the embedded world; write for example "
        "'a small red circle left of a large blue square, flat style, white background'"
    )


def _description(kind: str, groups: tuple[str, ...]) -> Description:
    style, background = groups[-2:]
    if kind == "one":
        return Description((Thing(*groups[:3]),), None, style, background)
    if kind == "two":
        return Description((Thing(*groups[:3]), Thing(*groups[4:7])), groups[3], style, background)
    if kind == "three":
        things = (Thing(*groups[:3]), Thing(*groups[3:6]), Thing(*groups[6:9]))
        return Description(things, groups[9], style, background)
    number = {word: n for n, word in COUNT_WORDS.items()}[groups[0]]
    shape = {plural: shape for shape, plural in PLURALS.items()}[groups[3]]
    return Description((Thing(groups[1], groups[2], shape),) * number, "count", style, background)


def random_description(rng: np.random.Generator, num_objects: int) -> Description:
    """A uniform description with 1 to 3 objects; a quarter of the others are counts of equal objects."""

    def thing() -> Thing:
        return Thing(str(rng.choice(SIZES)), str(rng.choice(COLORS)), str(rng.choice(SHAPES)))

    style, background = str(rng.choice(STYLES)), str(rng.choice(BACKGROUNDS))
    if num_objects == 1:
        return Description((thing(),), None, style, background)
    if rng.random() < 0.25:
        return Description((thing(),) * num_objects, "count", style, background)
    relation = str(rng.choice(RELATIONS if num_objects == 2 else ("row", "column")))
    return Description(tuple(thing() for _ in range(num_objects)), relation, style, background)


_RADIUS = {"small": 8 / 64, "large": 12.5 / 64}
_SCALE = {1: 1.0, 2: 1.0, 3: 0.78}  # three objects would not fit otherwise
_SPACING = {1: 0.0, 2: 29 / 64, 3: 21 / 64}
_ALONG = {1: 1.0, 2: 0.4, 3: 0.2}  # room for drift along the axis of the group


def place(
    description: Description, rng: np.random.Generator, quality: tuple[float, ...] | None = None
) -> Scene:
    """Choose what the caption leaves open.  Layout quality is order: centred, aligned and upright at 1."""
    levels = tuple(float(q) for q in (rng.random(4) if quality is None else quality))
    disorder = 1 - levels[QUALITIES.index("layout")]
    number = len(description.things)
    horizontal = _is_horizontal(description, rng)
    along = (np.arange(number) - (number - 1) / 2) * _SPACING[number]
    if description.relation in ("right of", "below"):
        along = along[::-1]
    # The whole group drifts away from the centre, mostly across its own axis, where there is room.
    spread = np.pi if number == 1 else np.pi / 6
    theta = rng.uniform(-spread, spread) + (np.pi if rng.random() < 0.5 else 0.0)
    drift = disorder * 13 / 64 * np.array([np.sin(theta) * _ALONG[number], np.cos(theta)])
    stagger = disorder * 4.5 / 64 * rng.choice([-1, 1]) * (np.arange(number) - (number - 1) / 2)
    tilt = disorder * np.deg2rad(28) * rng.choice([-1, 1])
    objects = []
    for i, thing in enumerate(description.things):
        a, b = along[i] + drift[0], drift[1] + stagger[i]
        x, y = (a, b) if horizontal else (b, a)
        radius = _RADIUS[thing.size] * _SCALE[number] * rng.uniform(0.95, 1.05)
        angle = tilt * rng.uniform(0.85, 1.15)
        objects.append(Placed(thing, float(0.5 + x), float(0.5 + y), float(radius), float(angle)))
    return Scene(description, tuple(objects), levels, float(rng.uniform(0, 2 * np.pi)))  # type: ignore[arg-type]


def _is_horizontal(description: Description, rng: np.random.Generator) -> bool:
    if description.relation in ("left of", "right of", "row"):
        return True
    if description.relation in ("above", "below", "column"):
        return False
    return bool(rng.random() < 0.5)


def sample_scenes(
    number: int, *, seed: int, held_out: bool, num_objects: int | None = None, min_quality: float = 0.0
) -> list[Scene]:
    """`number` scenes of the training or the held-out side of the split.

    Args:
        num_objects: 1 to 3, or None for the mixture 0.4, 0.4, 0.2.
        min_quality: all four qualities are uniform in [min_quality, 1].
    """
    rng = np.random.default_rng([seed, int(held_out)])
    return [_scene(rng, held_out, num_objects, min_quality) for _ in range(number)]


def _scene(rng: np.random.Generator, held_out: bool, num_objects: int | None, low: float) -> Scene:
    description = next(_descriptions(rng, held_out, num_objects))
    return place(description, rng, tuple(rng.uniform(low, 1, size=4)))


def _descriptions(rng: np.random.Generator, held_out: bool, num_objects: int | None) -> Iterator[Description]:
    while True:
        number = num_objects or int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
        description = random_description(rng, number)
        if description.held_out == held_out:
            yield description


def sample_prompts(number: int, *, seed: int, held_out: bool, num_objects: int | None = None) -> list[str]:
    """Captions only; as `sample_scenes`, without the hidden degrees of freedom."""
    rng = np.random.default_rng([seed, int(held_out), 1])
    stream = _descriptions(rng, held_out, num_objects)
    return [next(stream).caption for _ in range(number)]
