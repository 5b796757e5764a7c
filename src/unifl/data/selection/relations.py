"""How much a prompt says: the largest number of relations that one of its entities takes part in.

Source: UniFL (arXiv 2404.05595), section 4.2, appendix B.2 and algorithm 2. The paper parses with SceneGraphParser
and counts, for each subject or object, its attributes, actions and relations to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

ThresholdRule = Literal["at_least", "more_than"]


class Entity(NamedTuple):
    """A thing that a prompt names.

    Attributes:
        name: The noun.
        relations: One text per attribute ("red"), action ("sleeping") or relation to another entity ("on mat").
    """

    name: str
    relations: tuple[str, ...]


@runtime_checkable
class Parser(Protocol):
    """Reads the entities of a prompt; any function from a prompt to (name, relations) pairs is one."""

    def __call__(self, prompt: str, /) -> Sequence[tuple[str, Sequence[str]]]:
        """The entities of one prompt; none if it has none."""


def relation_score(entities: Sequence[tuple[str, Sequence[str]]]) -> int:
    """Information score of a parsed prompt: the maximum over its entities of the number of relations."""
    return max((len(relations) for _, relations in entities), default=0)


def passes(score: int, min_relations: int, rule: ThresholdRule) -> bool:
    """Whether a prompt of this score is kept.

    The paper says it in two ways, which differ by one: its text drops prompts with fewer than tau_1 relations
    ("at_least" keeps score >= tau_1), its algorithm 2 keeps those with more ("more_than": score > tau_1).
    """
    return score >= min_relations if rule == "at_least" else score > min_relations
