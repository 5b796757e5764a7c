"""Two folders of pictures side by side: distances of their features, diversity, and drift where they are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from unifl.assembly.picture_features import FolderFeatures, Picture
from unifl.data.pictures import read_picture, to_tensor
from unifl.errors import UserError
from unifl.metrics import (
    Interval,
    bootstrap_counts,
    centred_interval,
    cmmd_interval,
    frechet_interval,
    kernel_distance,
    kernel_replicates,
    kernel_subsets,
    mean_interval,
    prdc,
    ratio_interval,
    seed_diversity,
    vendi_score,
)
from unifl.metrics.prdc import NEAREST

_RESAMPLES, _SUBSETS = 400, 100


@dataclass(frozen=True)
class Distances:
    """What was measured.

    Attributes:
        features: Name of the extractor.
        pictures: How many there are, and how many references.
        numbers: Values with intervals; where low and high are equal to the value there is none.
        left_out: What could not be measured, and why.
    """

    features: str
    pictures: tuple[int, int]
    numbers: dict[str, Interval]
    left_out: dict[str, str] = field(default_factory=dict)


def measure_distances(
    ours: FolderFeatures, reference: FolderFeatures, *, name: str, few: bool = False, subset: int = 1000
) -> Distances:
    """Everything that two sets of features tell.

    Args:
        ours: The pictures in question.
        reference: Those that they are compared with.
        name: Of the features.
        few: Take a Frechet distance of fewer pictures than dimensions, too.
        subset: Pictures in each of the hundred subsets of `kid_subsets`; fewer where there are fewer.

    Raises:
        UserError: Features of two widths, or fewer than two pictures on a side.
    """
    x, y = ours.features, reference.features
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features have {x.shape[1]} and {y.shape[1]} numbers; take one extractor for both")
    numbers, left_out = set_distances(x, y, units=_units(ours.pictures), few=few)
    if "frechet" in left_out:
        left_out["frechet"] = left_out["frechet"].replace("set few", "add --few")
    size = min(subset, len(x), len(y))
    mean, std = kernel_subsets(x, y, subsets=_SUBSETS, size=size)
    numbers["kid_subsets"], numbers["kid_subsets_std"] = _plain(mean, size), _plain(std, size)
    for key, side in (("diversity", ours), ("diversity_reference", reference)):
        spread = _diversity(side.features, _units(side.pictures))
        if len(spread):
            numbers[key] = mean_interval(spread)
    drift, without = _drift(ours, reference)
    return Distances(name, (len(x), len(y)), numbers | drift, left_out | without)


def set_distances(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    units: Int[np.ndarray, " n"],
    few: bool = False,
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Distances of two sets of features, and how many different pictures each amounts to.

    Args:
        x: The pictures in question.
        y: Those that they are compared with.
        units: Which of `x` belong to one prompt, numbered from 0.
        few: Take a Frechet distance of fewer pictures than dimensions, too.

    Returns:
        The numbers; and what could not be measured, with the reason.

    Raises:
        UserError: Fewer than two pictures on a side.
    """
    counts = bootstrap_counts(int(units.max()) + 1, resamples=_RESAMPLES)[:, units]
    numbers = {
        "kid": centred_interval(kernel_distance(x, y), kernel_replicates(x, y, counts), n=len(x)),
        "cmmd": replace(cmmd_interval(x, y, units=units), n=len(x)),
        "vendi": _plain(vendi_score(x), len(x)),
        "vendi_reference": _plain(vendi_score(y), len(y)),
    }
    left_out: dict[str, str] = {}
    n = min(len(x), len(y))
    try:
        rows = _spread(len(x), n)
        found = frechet_interval(x[rows], y[_spread(len(y), n)], units=units[rows], few=few)
        numbers["frechet"] = replace(found, n=n)  # pictures: distances of other numbers do not compare
    except UserError as error:
        left_out["frechet"] = f"{error}"
    if n > NEAREST:
        nearest = prdc(x, y)
        for key in ("precision", "recall", "density", "coverage"):
            numbers[key] = _plain(getattr(nearest, key), n)
    else:
        left_out["precision, recall, density, coverage"] = f"they need more than {NEAREST} pictures on a side"
    return numbers, left_out


def feature_drift(
    x: Float[np.ndarray, "n d"], base: Float[np.ndarray, "n d"], *, units: Int[np.ndarray, " n"]
) -> tuple[dict[str, Interval], dict[str, str]]:
    """How far features of equal prompts and noise are apart, and the ratio of their diversities.

    Args:
        x: The pictures in question.
        base: Those of the base, row by row on the same noise.
        units: Which rows belong to one prompt, numbered from 0.

    Returns:
        As `set_distances`.
    """
    apart = np.linalg.norm(x - base, axis=1)
    found = {"drift_features": mean_interval(_by_unit(apart, units))}
    return _with_ratio((found, {}), "diversity", _diversity(x, units), _diversity(base, units))


def _plain(value: float, n: int) -> Interval:
    return Interval(value, value, value, n)


def _spread(number: int, wanted: int) -> Int[np.ndarray, " n"]:
    """So many rows, evenly spread."""
    return np.linspace(0, number - 1, wanted).round().astype(int)


def _units(pictures: Sequence[Picture]) -> Int[np.ndarray, " n"]:
    """Pictures of one prompt belong together; without prompts each stands alone."""
    if any(one.prompt is None for one in pictures):
        return np.arange(len(pictures))
    return np.unique([one.prompt for one in pictures], return_inverse=True)[1]


def _diversity(features: Float[np.ndarray, "n d"], units: Int[np.ndarray, " n"]) -> Float[np.ndarray, " p"]:
    """Mean feature distance between pictures of each prompt that has several."""
    alike = (np.flatnonzero(units == unit) for unit in range(int(units.max()) + 1))
    return np.array([seed_diversity(features[rows][None])[0] for rows in alike if len(rows) > 1])


def _drift(ours: FolderFeatures, base: FolderFeatures) -> tuple[dict[str, Interval], dict[str, str]]:
    """How far pictures of equal prompts and noise are apart, and what of it is left out and why.

    Nothing where they are not paired. Where both sides say the number of each prompt, on which noise depends,
    it counts.
    """
    numbered = all(one.index is not None for one in (*ours.pictures, *base.pictures))

    def key(one: Picture) -> tuple[str | None, int | None, int | None]:
        return one.prompt, one.seed, one.index if numbered else None

    places = {key(one): at for at, one in enumerate(base.pictures) if None not in (one.prompt, one.seed)}
    pairs = [(at, places[key(one)]) for at, one in enumerate(ours.pictures) if key(one) in places]
    if len(pairs) != len(ours.pictures) or len(places) != len(base.pictures):
        return {}, {}
    mine, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    units = _units(ours.pictures)[mine]
    found, left_out = feature_drift(ours.features[mine], base.features[theirs], units=units)
    pixels = [_rms(ours.pictures[a], base.pictures[b]) for a, b in pairs]
    if all(value is not None for value in pixels):
        found["drift_pixels"] = mean_interval(_by_unit(np.array(pixels, float), units))
    shares = (_by_unit(side.high_frequency[rows], units) for side, rows in ((ours, mine), (base, theirs)))
    return _with_ratio((found, left_out), "high_frequency", *shares)


def _with_ratio(
    found: tuple[dict[str, Interval], dict[str, str]], key: str, first: np.ndarray, second: np.ndarray
) -> tuple[dict[str, Interval], dict[str, str]]:
    """With the ratio of two lists of numbers, prompt by prompt; lists may be empty."""
    numbers, left_out = found
    name = f"drift_{key}_ratio"
    if second.any():
        return numbers | {name: ratio_interval(first, second)}, left_out
    if len(second):
        return numbers, left_out | {name: "that of the reference is 0, to which nothing has a ratio"}
    return found


def _by_unit(values: np.ndarray, units: np.ndarray) -> Float[np.ndarray, " p"]:
    return np.bincount(units, values) / np.bincount(units)


def _rms(a: Picture, b: Picture) -> float | None:
    """Root-mean-square difference of pixels in [0, 1]; None for pictures of two sizes."""
    first, second = (to_tensor(read_picture(one.path)) for one in (a, b))
    return float((first - second).square().mean().sqrt()) if first.shape == second.shape else None
