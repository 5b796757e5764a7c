"""Entities and relations by a dependency parse of spaCy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unifl.data.selection.relations import Entity
from unifl.errors import UserError

_ATTRIBUTES = frozenset(("amod", "compound", "nummod", "nmod", "acomp"))
_OBJECTS = frozenset(("dobj", "obj", "attr", "oprd"))
_SUBJECTS = frozenset(("nsubj", "nsubjpass"))
_CLAUSES = frozenset(("acl", "relcl"))


class SpacyParser:
    """Reads prompts by the labels of spaCy's English models (CLEAR style: amod, nsubj, dobj, prep, pobj, ...)."""

    def __init__(self, nlp: Callable[[str], Any]) -> None:
        """A parser.

        Args:
            nlp: A spaCy pipeline with a tagger and a dependency parser, or another function from text to `Doc`.
        """
        self._nlp = nlp

    def __call__(self, prompt: str, /) -> list[Entity]:
        """The entities of a prompt: its nouns that are not part of a compound, with their relations."""
        return entities_of(self._nlp(prompt))


def load_spacy_parser(model: str) -> SpacyParser:
    """A parser with an installed model.

    Raises:
        UserError: The model is not installed, or has no dependency parser.
    """
    import spacy

    try:
        nlp = spacy.load(model, exclude=["ner", "lemmatizer"])
    except OSError as error:
        raise UserError(
            f"spaCy's model {model!r} is not installed; python -m spacy download {model}, or take the parser 'rules', "
            "which needs nothing"
        ) from error
    if "parser" not in nlp.pipe_names:
        raise UserError(
            f"spaCy's model {model!r} has no dependency parser; take one that has, such as en_core_web_sm"
        )
    return SpacyParser(nlp)


def entities_of(doc: Any) -> list[Entity]:
    """The entities of a parsed `spacy.tokens.Doc`.

    Attributes are adjectives, numbers, compounds and predicates; actions are verbs that have the entity as their
    subject or describe it; relations are verbs with an object and prepositions, and count for both ends.
    """
    found: dict[int, list[str]] = {token.i: [] for token in doc if _is_entity(token)}
    for token in doc:
        if token.i in found:
            found[token.i] += [child.text for child in token.children if child.dep_ in _ATTRIBUTES]
            _connect(found, token, token, "")
        if token.pos_ in ("VERB", "AUX"):
            for subject in _subjects(token):
                _act(found, subject, token)
    return [Entity(doc[index].text, tuple(relations)) for index, relations in found.items()]


def _is_entity(token: Any) -> bool:
    return token.pos_ in ("NOUN", "PROPN") and token.dep_ not in ("compound", "nmod")


def _subjects(verb: Any) -> list[Any]:
    """Who does it: grammatical subjects, or the noun that a participle or relative clause describes."""
    if verb.dep_ in _CLAUSES:
        return [verb.head]
    return [child for child in verb.children if child.dep_ in _SUBJECTS]


def _act(found: dict[int, list[str]], subject: Any, verb: Any) -> None:
    """Books what a verb says about its subject."""
    if subject.i not in found:
        return
    before = len(found[subject.i])
    for child in verb.children:
        if child.dep_ in _OBJECTS and child.i in found:
            found[subject.i].append(f"{verb.text} {child.text}")
            found[child.i].append(f"{subject.text} {verb.text}")
        elif child.dep_ == "acomp":
            found[subject.i].append(child.text)
    _connect(found, subject, verb, f"{verb.text} ")
    if len(found[subject.i]) == before and verb.pos_ == "VERB":
        found[subject.i].append(verb.text)


def _connect(found: dict[int, list[str]], subject: Any, head: Any, verb: str) -> None:
    """Books the prepositions below a noun or a verb on the subject and on their objects."""
    for preposition in head.children:
        if preposition.dep_ not in ("prep", "agent"):
            continue
        for target in preposition.children:
            if target.dep_ == "pobj" and target.i in found:
                found[subject.i].append(f"{verb}{preposition.text} {target.text}")
                found[target.i].append(f"{subject.text} {verb}{preposition.text}")
