"""With heads and labels written by hand, as an English model of spaCy gives them; no model is needed."""

from __future__ import annotations

import pytest

from unifl.data.selection.parsers import open_parser
from unifl.data.selection.relations import relation_score
from unifl.errors import UserError

spacy = pytest.importorskip("spacy")

from unifl.data.selection.spacy_parser import SpacyParser, entities_of  # noqa: E402


def _doc(*rows):
    """Rows are (word, head, dependency, part of speech)."""
    words, heads, labels, parts = map(list, zip(*rows, strict=True))
    return spacy.tokens.Doc(spacy.blank("en").vocab, words=words, heads=heads, deps=labels, pos=parts)


def _found(doc):
    return {name: list(relations) for name, relations in entities_of(doc)}


def test_attributes_compounds_and_prepositions():
    doc = _doc(
        ("a", 3, "det", "DET"),
        ("small", 3, "amod", "ADJ"),
        ("stone", 3, "compound", "NOUN"),
        ("bridge", 3, "ROOT", "NOUN"),
        ("over", 3, "prep", "ADP"),
        ("water", 4, "pobj", "NOUN"),
    )
    assert _found(doc) == {"bridge": ["small", "stone", "over water"], "water": ["bridge over"]}
    assert relation_score(entities_of(doc)) == 3


def test_a_verb_with_an_object_and_a_place():
    doc = _doc(
        ("a", 1, "det", "DET"),
        ("dog", 2, "nsubj", "NOUN"),
        ("chases", 2, "ROOT", "VERB"),
        ("cats", 2, "dobj", "NOUN"),
        ("on", 2, "prep", "ADP"),
        ("grass", 4, "pobj", "NOUN"),
    )
    assert _found(doc) == {
        "dog": ["chases cats", "chases on grass"],
        "cats": ["dog chases"],
        "grass": ["dog chases on"],
    }


def test_participles_bare_actions_and_predicates():
    wearing = _doc(("woman", 0, "ROOT", "NOUN"), ("wearing", 0, "acl", "VERB"), ("boots", 1, "dobj", "NOUN"))
    assert _found(wearing) == {"woman": ["wearing boots"], "boots": ["woman wearing"]}
    sleeping = _doc(("cat", 0, "ROOT", "NOUN"), ("sleeping", 0, "acl", "VERB"))
    assert _found(sleeping) == {"cat": ["sleeping"]}
    blue = _doc(("sky", 1, "nsubj", "NOUN"), ("is", 1, "ROOT", "AUX"), ("blue", 1, "acomp", "ADJ"))
    assert _found(blue) == {"sky": ["blue"]}


def test_a_pipeline_is_called_with_the_prompt():
    asked = []

    def nlp(text):
        asked.append(text)
        return _doc(("red", 1, "amod", "ADJ"), ("cat", 1, "ROOT", "NOUN"))

    assert SpacyParser(nlp)("red cat") == [("cat", ("red",))]
    assert asked == ["red cat"]


def test_a_model_that_is_missing_or_has_no_parser_is_explained(tmp_path):
    with pytest.raises(
        UserError, match="'none_of_that_name' is not installed; python -m spacy download none_of"
    ):
        open_parser("spacy:none_of_that_name")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="has no dependency parser"):
        open_parser(f"spacy:{tmp_path / 'blank'}")
