"""The whole selection: drop duplicates, filter by relations, compress, draw at random, and measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unifl.data.selection.greedy import Progress, compress_exactly
from unifl.data.selection.inverted import Check, compress_approximately, require_faiss
from unifl.data.selection.relations import Parser, ThresholdRule, passes, relation_score
from unifl.data.selection.rule_parser import parse_by_rules
from unifl.data.selection.similarity import Similarity, average_nearest_similarity, scale_to_length_one
from unifl.errors import UserError
from unifl.randomness import permutation

Mode = Literal["auto", "exact", "approximate"]

EXACT_UP_TO = 200_000
"""Most prompts that `auto` compresses exactly on a CPU."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """What is kept. The defaults are those of UniFL (arXiv 2404.05595, appendix B.2) in the reading of its text."""

    min_relations: int = 1
    """tau_1, compared with the largest number of relations of an entity."""
    threshold_rule: ThresholdRule = "at_least"
    """`at_least` keeps scores >= tau_1 (the paper's text), `more_than` keeps scores > tau_1 (its algorithm 2)."""
    similarity: float = 0.8
    """tau_2: the largest cosine that two kept prompts may have."""
    number: int | None = None
    """How many of those that are left are drawn at random; None takes all. The paper takes 100,000."""
    seed: int = 0
    """Of the order of the greedy pass, of the draw and of samples that are measured."""
    mode: Mode = "auto"
    """How prompts are compressed; `auto` is exact up to 200,000 of them, and for any number on a GPU."""

    def __post_init__(self) -> None:
        """Checks values.

        Raises:
            UserError: A value out of its range.
        """
        if self.min_relations < 0:
            raise UserError(f"min_relations is {self.min_relations}; it must be at least 0")
        if self.threshold_rule not in ("at_least", "more_than"):
            raise UserError(f"threshold_rule is {self.threshold_rule!r}; write at_least or more_than")
        if not -1 < self.similarity <= 1:
            raise UserError(f"similarity is {self.similarity:g}; a cosine is in (-1, 1], and 0.8 is usual")
        if self.number is not None and self.number < 1:
            raise UserError(f"number is {self.number}; it must be at least 1")
        if self.mode not in ("auto", "exact", "approximate"):
            raise UserError(f"mode is {self.mode!r}; write auto, exact or approximate")
        if self.mode == "approximate":
            require_faiss()


@dataclass(frozen=True)
class Counts:
    """How many prompts there were after each step."""

    read: int
    duplicated: int
    after_filter: int
    after_compression: int
    selected: int


@dataclass(frozen=True)
class Selection:
    """Which prompts were selected, and what that did.

    Attributes:
        indices: Places in the prompts that were given, ascending.
        counts: Prompts after each step.
        mode: "exact" or "approximate".
        check: What the check of an approximate compression found.
        similarity: Nearest-neighbour similarities of all different prompts ("read"), of as many of them as were
            selected, drawn at random ("random"), and of the selected ones ("selected"). ANS grows with the size of a
            set, so compare the last two.
        seconds: Wall time by step.
    """

    indices: list[int]
    counts: Counts
    mode: Literal["exact", "approximate"]
    check: Check | None
    similarity: dict[str, Similarity]
    seconds: dict[str, float] = field(default_factory=dict)


def select_prompts(
    prompts: Sequence[str],
    embeddings: Float[Tensor, "n d"] | Callable[[list[str]], Tensor],
    config: SelectionConfig | None = None,
    *,
    parser: Parser = parse_by_rules,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Selection:
    """Choose prompts that say something and differ from each other.

    Source: UniFL (arXiv 2404.05595), section 4.2 and algorithm 2.

    Args:
        prompts: n texts.
        embeddings: One row per prompt, or a function from texts to rows, such as `load_text_encoder` returns; it is
            called once with all different prompts. Rows need not have length 1.
        config: What is kept.
        parser: From a prompt to its entities and their relations.
        device: Where similarities are computed in exact mode.
        progress: Called with (step, done, total).

    Raises:
        UserError: No prompts, nothing left after the filter, embeddings of another shape or with a zero or non-finite
            row, faiss missing where it is needed.
    """
    config = config or SelectionConfig()
    if not prompts:
        raise UserError("there are no prompts to select from; give at least one")
    if isinstance(embeddings, Tensor) and (embeddings.ndim != 2 or len(embeddings) != len(prompts)):
        raise UserError(
            f"embeddings have shape {tuple(embeddings.shape)}; they need one row per prompt: ({len(prompts)}, d)"
        )
    clock = _Clock(progress)
    unique = _first_of_each(prompts)
    _mode(
        config, len(unique), device
    )  # a missing faiss is said before prompts are parsed, which can take long
    with clock.step("relations") as report:
        passed = _filter(prompts, unique, parser, config, report)
    mode = _mode(config, len(passed), device)

    with clock.step("embeddings"):
        if isinstance(embeddings, Tensor):
            vectors = embeddings[unique].cpu().float()
        else:
            vectors = _embedded(embeddings, [prompts[index] for index in unique.tolist()])
        scale_to_length_one(vectors)
    with clock.step("compression") as report:
        order = passed[permutation(len(passed), config.seed, "compression")]
        kept, check = _compress(vectors[order], config, mode, device, report)
        kept = order[kept]
    drawn = kept[permutation(len(kept), config.seed, "draw")[: config.number]].sort().values
    with clock.step("similarity"):
        similarity = _similarities(vectors, drawn, config.seed)
    counts = Counts(len(prompts), len(prompts) - len(unique), len(passed), len(kept), len(drawn))
    return Selection(unique[drawn].tolist(), counts, mode, check, similarity, clock.seconds)


class _Clock:
    """Times steps, and names them to whoever shows progress."""

    def __init__(self, progress: Callable[[str, int, int], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def step(self, name: str) -> Iterator[Progress]:
        def report(done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(name, done, total)

        started = time.perf_counter()
        yield report
        self.seconds[name] = time.perf_counter() - started


def _first_of_each(prompts: Sequence[str]) -> Int64[Tensor, " u"]:
    """The first of every group of prompts that differ in white space only."""
    first: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        first.setdefault(" ".join(prompt.split()), index)
    return torch.tensor(list(first.values()))


def _filter(
    prompts: Sequence[str],
    unique: Int64[Tensor, " u"],
    parser: Parser,
    config: SelectionConfig,
    report: Progress,
) -> Int64[Tensor, " f"]:
    """Places in `unique` of the prompts that say enough."""
    scores = []
    for place, index in enumerate(unique.tolist()):
        scores.append(relation_score(parser(prompts[index])))
        if place % 256 == 255 or place + 1 == len(unique):
            report(place + 1, len(unique))
    passed = [
        place
        for place, score in enumerate(scores)
        if passes(score, config.min_relations, config.threshold_rule)
    ]
    if not passed:
        words = "at least" if config.threshold_rule == "at_least" else "more than"
        raise UserError(
            f"the relation filter removed all {len(unique)} prompts: none has an entity with {words} "
            f"{config.min_relations} relations (the most is {max(scores)}); lower min_relations, or take another parser"
        )
    return torch.tensor(passed)


def _mode(
    config: SelectionConfig, num_prompts: int, device: str | torch.device
) -> Literal["exact", "approximate"]:
    if config.mode != "auto":
        return config.mode
    if num_prompts <= EXACT_UP_TO or torch.device(device).type == "cuda":
        return "exact"
    require_faiss()
    return "approximate"


def _embedded(encoder: Callable[[list[str]], Tensor], texts: list[str]) -> Float[Tensor, "u d"]:
    vectors = encoder(texts)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise UserError(
            f"the encoder returned shape {tuple(vectors.shape)} for {len(texts)} prompts; it must be "
            f"({len(texts)}, d)"
        )
    return vectors.detach().cpu().float().clone()  # a copy, because it is scaled in place


def _compress(
    vectors: Float[Tensor, "f d"],
    config: SelectionConfig,
    mode: Literal["exact", "approximate"],
    device: str | torch.device,
    report: Progress,
) -> tuple[Int64[Tensor, " k"], Check | None]:
    if mode == "exact":
        return compress_exactly(vectors.to(device), config.similarity, progress=report), None
    return compress_approximately(vectors, config.similarity, seed=config.seed, progress=report)


def _similarities(
    vectors: Float[Tensor, "u d"], drawn: Int64[Tensor, " k"], seed: int
) -> dict[str, Similarity]:
    random = permutation(len(vectors), seed, "random set")[: len(drawn)]
    sets = {"read": vectors, "random": vectors[random], "selected": vectors[drawn]}
    return {name: average_nearest_similarity(rows, seed=seed) for name, rows in sets.items()}
