from __future__ import annotations

import importlib.util

import pytest

from unifl.data.selection.parsers import open_parser
from unifl.data.selection.relations import passes, relation_score
from unifl.data.selection.rule_parser import parse_by_rules
from unifl.errors import UserError


def _relations(prompt):
    return {name: list(relations) for name, relations in parse_by_rules(prompt)}


def test_attributes_belong_to_their_noun():
    assert _relations("a small red circle, white background") == {
        "circle": ["small", "red"],
        "background": ["white"],
    }


@pytest.mark.parametrize(
    ("prompt", "relation"),
    [
        ("a cat on the mat", "on"),
        ("a cat under a mat", "under"),
        ("a cat next to the mat", "next to"),
        ("a cat in front of a mat", "in front of"),
        ("a cat with mat", "with"),
        ("a cat sitting on a mat", "sitting on"),
        ("a cat is sitting on a mat", "sitting on"),
        ("a cat chasing the mat", "chasing"),
        ("a cat, wearing mat", "wearing"),
    ],
)
def test_a_relation_counts_for_both_of_its_ends(prompt, relation):
    assert _relations(prompt) == {"cat": [f"{relation} mat"], "mat": [f"cat {relation}"]}


def test_an_action_without_an_object_counts_for_its_subject():
    assert _relations("a cat sleeping") == {"cat": ["sleeping"]}
    assert _relations("a smiling woman") == {"woman": ["smiling"]}
    assert _relations("an oil painting") == {"painting": ["oil"]}


def test_adverbs_are_passed_over_and_other_words_in_ly_are_not():
    assert _relations("a brightly lit room") == {"room": ["lit"]}
    assert _relations("a red butterfly on a lily") == {
        "butterfly": ["red", "on lily"],
        "lily": ["butterfly on"],
    }
    assert _relations("a curly dog") == {"dog": ["curly"]}


def test_borders_of_sentences_and_lists():
    assert _relations("a cat. on a mat") == {"cat": [], "mat": []}
    assert _relations("a cat and a dog on a mat") == {"cat": [], "dog": ["on mat"], "mat": ["dog on"]}


@pytest.mark.parametrize("prompt", ["", "...", "the", "on", "(:", "sleeping on", "\n", "日本語", "a"])
def test_odd_prompts_are_read_without_relations(prompt):
    assert relation_score(parse_by_rules(prompt)) == 0


def test_the_score_is_the_maximum_over_entities_not_the_sum():
    assert relation_score([("cat", ["red", "small"]), ("mat", ["old"]), ("dog", [])]) == 2
    assert relation_score([]) == 0
    scores = [
        relation_score(parse_by_rules(prompt)) for prompt in ("cat", "red cat", "small red cat on a mat")
    ]
    assert scores == [0, 1, 3]


def test_the_two_readings_of_the_threshold_differ_by_one():
    assert [passes(score, 1, "at_least") for score in range(3)] == [False, True, True]
    assert [passes(score, 1, "more_than") for score in range(3)] == [False, False, True]


def test_parsers_by_name(monkeypatch):
    assert open_parser("rules") is parse_by_rules
    with pytest.raises(UserError, match="no parser 'rule'; did you mean 'rules'"):
        open_parser("rule")
    with pytest.raises(UserError, match=r"no parser 'xyz'; there is rules, spacy, or package\.module:name"):
        open_parser("xyz")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"not installed; pip install spacy and python -m spacy download"):
        open_parser("spacy")
