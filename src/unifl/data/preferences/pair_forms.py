"""Pairs in the forms that people have: columns of Pick-a-Pic, rankings of HPD v2, and prompt with chosen and rejected.

- Pick-a-Pic (https://huggingface.co/datasets/yuvalkirstain/pickapic_v2): `caption`, `jpg_0`, `jpg_1`, `label_0`,
  `label_1`, and perhaps `has_label`, `are_different`, `best_image_uid`, `image_0_uid`, `image_1_uid`, `ranking_id`,
  `user_id`. Labels are shares of the preference and sum to 1.
- HPD v2 (https://huggingface.co/datasets/ymhao/HPDv2): `prompt`, `image_path` (or `file_path`), and `rank`, of which
  the smallest is best, or `human_preference`, of which 1 is preferred. ImageReward's `data/test.json`
  (https://github.com/THUDM/ImageReward) has `generations` and `ranking` in their place.
- `prompt`, `chosen`, `rejected`, and perhaps `tie`, `strength`, `axis`, `user`, `ranking_id`, `chosen_mask`,
  `rejected_mask`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int8, Int64

from unifl.data.preferences.index import FIRST, MISSING, SECOND, TIE, Masks, PreferenceIndex, make_index
from unifl.data.preferences.places import named_places
from unifl.data.preferences.tables import JsonTable, Table, Texts
from unifl.errors import UserError

RANKED_PICTURES = ("image_path", "file_path", "generations")
RANKS = ("rank", "ranking")
_ROUNDING = 1e-3  # by which labels may miss their sum of 1
_UNKNOWN = 3  # an outcome that is none


def pick_a_pic(table: Table, shown: str) -> PreferenceIndex:
    """The columns of Pick-a-Pic.

    A label is missing where `has_label` is false or a label is null or NaN, and a picture is compared with itself
    where `are_different` is false. Without the columns of labels, `best_image_uid` says who won.

    Raises:
        UserError: Labels that are no shares; with file and row.
    """
    uids = ("image_0_uid", "image_1_uid") if {"image_0_uid", "image_1_uid"} <= table.columns else None
    (first, second), pictures = table.pictures(("jpg_0", "jpg_1"), uids)
    if {"label_0", "label_1"} <= table.columns:
        outcome, strength = _from_labels(table)
    else:
        outcome, strength = _from_best(table), np.ones(len(table))
    if "has_label" in table.columns:
        outcome = np.where(table.numbers("has_label") == 0, np.int8(MISSING), outcome)
    if "are_different" in table.columns:
        second = np.where(table.numbers("are_different") == 0, first, second)
    return make_index(
        table,
        shown=shown,
        prompts=table.texts("caption"),
        first=first,
        second=second,
        outcome=outcome,
        pictures=pictures,
        strength=strength,
    )


def _from_labels(table: Table) -> tuple[Int8[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    first, second = table.numbers("label_0"), table.numbers("label_1")
    there = ~(np.isnan(first) | np.isnan(second))
    if "has_label" in table.columns:
        there &= table.numbers("has_label") != 0
    shares = (first >= 0) & (second >= 0) & (np.abs(first + second - 1) <= _ROUNDING)
    wrong = np.flatnonzero(there & ~shares)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"the labels of {table.place(row)} are {first[row]:g} and {second[row]:g}; they are shares that sum to 1 "
            "(1 and 0, 0 and 1, or 0.5 and 0.5 for a tie), or null where there is none"
        )
    gap = np.where(there, first - second, 0.0)
    clear = np.abs(gap) > _ROUNDING
    outcome = np.where(~there, MISSING, np.where(clear, np.sign(gap), TIE)).astype(np.int8)
    return outcome, np.minimum(np.abs(gap), 1.0)


def _from_best(table: Table) -> Int8[np.ndarray, " n"]:
    """Who won by `best_image_uid`, which is one of the two uids, "tie", or null."""
    best, first, second = (table.texts(name) for name in ("best_image_uid", "image_0_uid", "image_1_uid"))
    numbers = {value: number for number, value in enumerate(best.values)}

    def is_best(texts: Texts) -> Any:
        own = np.array([numbers.get(value, -2) for value in texts.values] + [-2])
        return own[texts.codes] == best.codes

    outcome = np.full(len(table), _UNKNOWN, np.int8)
    outcome[is_best(second)] = SECOND
    outcome[is_best(first)] = FIRST
    outcome[best.codes == numbers.get("tie", -2)] = TIE
    outcome[best.codes < 0] = MISSING
    wrong = np.flatnonzero(outcome == _UNKNOWN)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"best_image_uid of {table.place(row)} is {best.values[best.codes[row]]!r}, which is neither of its "
            "uids nor 'tie'"
        )
    return outcome


def chosen_rejected(table: Table, shown: str) -> PreferenceIndex:
    """The columns `prompt`, `chosen`, `rejected`.

    Raises:
        UserError: A strength outside (0, 1]; with file and row.
    """
    (first, second), pictures = table.pictures(("chosen", "rejected"), None)
    outcome, strength = np.full(len(table), FIRST, np.int8), None
    if "tie" in table.columns:
        outcome[table.numbers("tie") == 1] = TIE
    if "strength" in table.columns:
        strength = np.nan_to_num(table.numbers("strength"), nan=1.0)
        wrong = np.flatnonzero((strength <= 0) | (strength > 1))
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"the strength of {table.place(row)} is {strength[row]:g}; it must be above 0 and at most 1"
            )
    return make_index(
        table,
        shown=shown,
        prompts=table.texts("prompt"),
        first=first,
        second=second,
        outcome=outcome,
        pictures=pictures,
        strength=strength,
        masks=_masks(table),
    )


def _masks(table: Table) -> Masks | None:
    given = [name for name in ("chosen_mask", "rejected_mask") if name in table.columns]
    if not given:
        return None
    found, places = table.pictures(given, None)
    codes = dict(zip(given, found, strict=True))
    none = np.full(len(table), -1, np.int64)
    return Masks(codes.get("chosen_mask", none), codes.get("rejected_mask", none), places)


def rankings(table: JsonTable, shown: str) -> PreferenceIndex:
    """Rankings as in HPD v2 and ImageReward: every two pictures of a row are a pair, and equal ranks are a tie.

    The strength is the difference of `human_preference`, or that of ranks divided by the largest there can be.

    Raises:
        UserError: Lists of different lengths, or values that are no numbers; with file and row.
    """
    listed = next(name for name in RANKED_PICTURES if name in table.columns)
    said = next((name for name in RANKS if name in table.columns), "human_preference")
    ranked = said in RANKS
    numbers: dict[str, int] = {}
    first, second, gaps, rows = [], [], [], []
    for row, names in enumerate(table.values(listed)):
        values = _label_values(table, row, listed, said)
        shown_here = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
        left, right = _every_two(len(names))
        gap = values[left] - values[right]
        first.append(shown_here[left])
        second.append(shown_here[right])
        gaps.append(-gap / max(len(names) - 1, 1) if ranked else gap)
        rows.append(np.full(len(left), row, np.int64))
    gap, of_row = np.concatenate(gaps), np.concatenate(rows)
    outcome = np.where(np.isnan(gap), MISSING, np.sign(np.nan_to_num(gap))).astype(np.int8)
    return make_index(
        table,
        shown=shown,
        prompts=table.texts("prompt").take(of_row),
        first=np.concatenate(first),
        second=np.concatenate(second),
        outcome=outcome,
        pictures=named_places(list(numbers), table.folder),
        rows=of_row,
        strength=np.clip(np.abs(np.nan_to_num(gap)), 0, 1),
    )


def _label_values(table: JsonTable, row: int, listed: str, said: str) -> Float64[np.ndarray, " k"]:
    """Ranks or preferences of one row, from the columns of pictures and of labels; NaN where one is null."""
    names, given = table.values(listed)[row], table.values(said)[row]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{table.place(row)} has no list of file names; {listed} is {names!r}")
    if given is None:
        return np.full(len(names), math.nan)
    fits = isinstance(given, list) and len(given) == len(names)
    if not fits or not all(value is None or _is_number(value) for value in given):
        raise UserError(
            f"{said} of {table.place(row)} is {given!r}; one number for each of its {len(names)} pictures is needed"
        )
    values = np.array([math.nan if value is None else float(value) for value in given])
    if said not in RANKS and ((values < 0) | (values > 1)).any():
        raise UserError(f"{said} of {table.place(row)} is {given!r}; it must be in [0, 1]")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@lru_cache
def _every_two(number: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    left, right = np.triu_indices(number, k=1)
    return left, right
