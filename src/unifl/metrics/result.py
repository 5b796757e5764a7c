"""`result.json`: the one file format in which every command leaves its figures.

    schema_version
    models        {id: weights_sha256, sampler, steps, guidance, spacing, seeds, prompts_sha256,
                       metrics {name: {value, low, high, n}}}          ids such as "base@20"
    comparisons   [a, b, judge, metric, win, tie, lose, low, high, n]
    ranks         [model, judge, metric, strength, low, high, n]        Bradley-Terry, several models
    claims        [id, statement, paper, measured, low, high, n, train_seeds, holds]
    bench         [id, ratio, low, high, evaluations]

Files are checked when read and when written: unknown keys, missing keys and numbers that are not finite are
errors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from unifl.disk import write_atomically
from unifl.errors import UserError, nearest
from unifl.metrics.intervals import Interval
from unifl.metrics.paired import Paired

SCHEMA_VERSION = 1
FILES = "files"
"""The sampler of pictures that another tool drew; their steps are 0, and the hash is that of the pictures."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(kw_only=True)
class Metric:
    """A value with its 95 % interval; ``n`` counts prompts, for distances samples."""

    __pydantic_config__ = _STRICT
    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, interval: Interval) -> Metric:
        """The same numbers as stored in the file."""
        return cls(**dataclasses.asdict(interval))


@dataclass(kw_only=True)
class ModelEntry:
    """How a model was sampled, and what was measured on its samples."""

    __pydantic_config__ = _STRICT
    weights_sha256: str
    sampler: str
    steps: int
    guidance: float | int
    spacing: str
    seeds: list[int]
    prompts_sha256: str
    metrics: dict[str, Metric] = field(default_factory=dict)


@dataclass(kw_only=True)
class Comparison:
    """Model ``a`` against model ``b`` on the same prompts and noise.

    ``win`` counts a tie as half and ``low``, ``high`` are its interval; ``tie`` and ``lose`` are plain
    shares, so ``win + tie / 2 + lose == 1``.
    """

    __pydantic_config__ = _STRICT
    a: str
    b: str
    judge: str
    metric: str
    win: float
    tie: float
    lose: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, paired: Paired, *, a: str, b: str, judge: str, metric: str = "overall") -> Comparison:
        """A row of the file from the outcome of ``a`` against ``b``."""
        rate = paired.rate
        return cls(
            a=a, b=b, judge=judge, metric=metric, win=rate.value, tie=paired.ties, lose=paired.losses,
            low=rate.low, high=rate.high, n=rate.n,
        )  # fmt: skip


@dataclass(kw_only=True)
class Rank:
    """A model's Bradley-Terry strength among those that were evaluated together: log-odds of mean 0."""

    __pydantic_config__ = _STRICT
    model: str
    judge: str
    metric: str
    strength: float
    low: float
    high: float
    n: int


@dataclass(kw_only=True)
class Claim:
    """A statement of a paper beside what was measured; ``holds`` is null where it could not be decided."""

    __pydantic_config__ = _STRICT
    id: str
    statement: str
    paper: float | str | None = None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    train_seeds: int | None = None
    holds: bool | None = None


@dataclass(kw_only=True)
class Bench:
    """Time of a training step over that of its network evaluations run bare; ``evaluations`` counts them by kind.

    Where the id names an opponent (``lcd-against-diffusers``), the ratio is samples per second over the opponent's.
    """

    __pydantic_config__ = _STRICT
    id: str
    ratio: float
    low: float
    high: float
    evaluations: dict[str, float | int]


@dataclass(kw_only=True)
class Result:
    """The whole file."""

    __pydantic_config__ = _STRICT
    schema_version: int = SCHEMA_VERSION
    models: dict[str, ModelEntry] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    bench: list[Bench] = field(default_factory=list)


_adapter = TypeAdapter(Result)
Row = TypeVar("Row", bound="Comparison | Rank | Claim | Bench")


def prompts_sha256(prompts: Iterable[str]) -> str:
    """Hash that two models share exactly when they were given the same prompts in the same order."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def read_result(path: str | Path) -> Result:
    """Read and check a file.

    Raises:
        UserError: if the file is missing, is not JSON, or does not follow the schema; the message names the
            place.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `unifl evaluate` first") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); write it again or delete it") from None
    return validate(data, where=str(path))


def read_existing(path: str | Path) -> Result:
    """What a file holds that later results will be merged into; empty if there is none yet.

    Long work calls it first: a file that cannot be merged into must not be noticed when the work is done.

    Raises:
        UserError: if the file cannot be read, see `read_result`.
    """
    return read_result(path) if Path(path).exists() else Result()


def validate(data: Any, *, where: str = "result") -> Result:
    """Check plain JSON data against the schema and return it typed."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema_version is {version!r}, this version of unifl reads {SCHEMA_VERSION}; "
            "evaluate again, or use the version that wrote the file"
        )
    try:
        result = _adapter.validate_python(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    _check_numbers(result, where)
    return result


def write_result(result: Result, path: str | Path) -> Path:
    """Check and write a file atomically: a crash leaves the old file or the new one, never half of one."""
    path = Path(path)
    data = dataclasses.asdict(result)
    validate(data, where=str(path))
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, text.encode())


def merge_results(old: Result, new: Result) -> Result:
    """Both together; where they speak of the same thing, ``new`` wins.

    Models and claims and benches are the same by id, comparisons by (a, b, judge, metric). Metrics of a model
    are joined only if it was sampled in the same way from the same weights; otherwise the new entry replaces
    the old, and the old comparisons of that model go with it. Ranks are of models that were evaluated
    together: new ones of a judge and a metric replace all old ones, and old ones go with a model that was replaced.
    """
    models, replaced = dict(old.models), set()
    for name, entry in new.models.items():
        before = models.get(name)
        if before is not None and _same_samples(before, entry):
            entry = dataclasses.replace(entry, metrics={**before.metrics, **entry.metrics})
        elif before is not None:
            replaced.add(name)
        models[name] = entry
    comparisons = [row for row in old.comparisons if replaced.isdisjoint((row.a, row.b))]
    return Result(
        models=models,
        comparisons=_merge_rows(comparisons, new.comparisons, ("a", "b", "judge", "metric")),
        ranks=_merge_ranks(old.ranks, new.ranks, replaced),
        claims=_merge_rows(old.claims, new.claims, ("id",)),
        bench=_merge_rows(old.bench, new.bench, ("id",)),
    )


def update_result(path: str | Path, new: Result) -> Result:
    """Merge ``new`` into the file, which need not exist yet, and return what it holds now."""
    merged = merge_results(read_existing(path), new)
    write_result(merged, path)
    return merged


def _same_samples(a: ModelEntry, b: ModelEntry) -> bool:
    return dataclasses.replace(a, metrics={}) == dataclasses.replace(b, metrics={})


def _merge_ranks(old: Sequence[Rank], new: Sequence[Rank], replaced: set[str]) -> list[Rank]:
    gone = {(row.judge, row.metric) for row in old if row.model in replaced}
    gone |= {(row.judge, row.metric) for row in new}
    return [row for row in old if (row.judge, row.metric) not in gone] + list(new)


def _merge_rows(old: Sequence[Row], new: Sequence[Row], key: tuple[str, ...]) -> list[Row]:
    merged: dict[tuple[object, ...], Row] = {}
    for rows in (old, new):
        merged.update((tuple(getattr(row, name) for name in key), row) for row in rows)
    return list(merged.values())


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the top level"
    if first["type"] == "unexpected_keyword_argument":
        known = [
            f.name
            for cls in (Result, ModelEntry, Metric, Comparison, Rank, Claim, Bench)
            for f in dataclasses.fields(cls)
        ]
        guess = nearest(str(first["loc"][-1]), known)
        hint = f"; did you mean {guess!r}?" if guess else "; remove it"
        return f"unknown key at {place}{hint}"
    return f"{place}: {first['msg']}"


def _check_numbers(result: Result, where: str) -> None:
    for name, entry in result.models.items():
        for metric, m in entry.metrics.items():
            if not m.low <= m.high:
                raise UserError(
                    f"{where}: models.{name}.metrics.{metric}: low {m.low} is above high {m.high}"
                )
    for row in result.comparisons:
        if not math.isclose(row.win + row.tie / 2 + row.lose, 1.0, abs_tol=1e-6):
            raise UserError(
                f"{where}: comparison of {row.a} with {row.b}: win counts a tie as half, so win + tie / 2 + lose "
                f"must be 1, got {row.win} + {row.tie} / 2 + {row.lose}"
            )
