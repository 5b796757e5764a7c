"""How much a prompt says: the largest number of relations that one of its entities takes part in.

Source: UniFL (arXiv 2404.05595), section 4.2, appendix B.2 and algorithm 2. The paper parses with SceneGraphParser
and counts, for each subject or object, its attributes, actions and relations to others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from unifl.errors import UserError, nearest

ThresholdRule = Literal["at_least", "more_than"]

PARSERS = ("rules", "spacy")


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


def open_parser(name: str) -> Parser:
    """A parser that comes with this package.

    Args:
        name: "rules" (a few rules for English, needs nothing), "spacy" (a dependency parse by en_core_web_sm) or
            "spacy:<model>".

    Raises:
        UserError: No parser of that name, or spaCy or its model is not installed.
    """
    kind, _, model = name.partition(":")
    if kind == "spacy":
        if importlib.util.find_spec("spacy") is None:
            raise UserError(
                "the parser 'spacy' needs spaCy, which is not installed; pip install 'unifl[prompts]' and "
                "python -m spacy download en_core_web_sm, or take the parser 'rules', which needs nothing"
            )
        from unifl.data.selection.spacy_parser import load_spacy_parser

        return load_spacy_parser(model or "en_core_web_sm")
    if name == "rules":
        from unifl.data.selection.rule_parser import parse_by_rules

        return parse_by_rules
    guess = nearest(name, PARSERS)
    hint = f"did you mean {guess!r}?" if guess else f"there is {', '.join(PARSERS)}, or package.module:name"
    raise UserError(f"there is no parser {name!r}; {hint}")
