"""The parsers that come with this package, by name."""

from __future__ import annotations

import importlib.util

from unifl.data.selection.relations import Parser
from unifl.data.selection.rule_parser import parse_by_rules
from unifl.data.selection.spacy_parser import load_spacy_parser
from unifl.errors import UserError, nearest

PARSERS = ("rules", "spacy")


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
                "the parser 'spacy' needs spaCy, which is not installed; pip install spacy and "
                "python -m spacy download en_core_web_sm, or take the parser 'rules', which needs nothing"
            )
        return load_spacy_parser(model or "en_core_web_sm")
    if name == "rules":
        return parse_by_rules
    guess = nearest(name, PARSERS)
    hint = f"did you mean {guess!r}?" if guess else f"there is {', '.join(PARSERS)}, or package.module:name"
    raise UserError(f"there is no parser {name!r}; {hint}")
