"""Entities and relations of English prompts by a handful of rules.

This is a heuristic with word lists of a few lines, not a grammar: it knows no parts of speech. The last word of a
run of words is taken for the noun and those before it for its attributes, prepositions and "-ing" words connect an
entity to the next one. It needs no model, reads tens of thousands of prompts in a second, and is enough to tell
"cat" from "a small red cat sleeping on a mat". Where the difference matters, parse with spaCy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

from unifl.data.selection.relations import Entity

_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[.,;:!?|()\[\]]")

_SKIPPED = frozenset(
    "a an the this that these those some any each every another his her its their my your our very highly extremely "
    "quite so too and or but who which it he she they".split()
)
_COPULAS = frozenset("is are was were".split())
_PREPOSITIONS = frozenset(
    "on in under over above below beneath behind beside near by at with without inside outside between among against "
    "around through across along into onto from of to atop upon within toward towards underneath beyond".split()
)
# part of a preposition only before "to" or "of": next to, close to, in front of, on top of
_HALVES = {"next": "to", "close": "to", "left": "of", "right": "of", "front": "of", "top": "of"}
# verbs that take an object without an article ("wearing red boots"); elsewhere "-ing" before a word is an attribute
_TRANSITIVE = frozenset(
    "wearing holding eating drinking riding carrying playing reading watching chasing facing using driving".split()
)
_NOUNS_IN_ING = frozenset(
    "painting building drawing lighting king ring wing string clothing morning evening ceiling spring thing being "
    "rendering wedding engraving setting duckling earring viking something nothing everything anything".split()
)

_NO_ADVERBS_IN_LY = frozenset(
    "ally anomaly assembly belly bully butterfly chilly comely costly cowardly cuddly curly deadly dolly dragonfly "
    "early elderly family firefly fly friendly ghostly gnarly heavenly hilly holly holy homely horsefly italy jelly "
    "jolly july lily lively lonely lovely lowly manly melancholy monopoly orderly otherworldly poly "
    "princely prickly pearly rally reply saintly scholarly scaly shapely sickly silly sly smelly sparkly spindly "
    "squiggly stately steely supply surly tally timely ugly unholy unruly untimely wily wobbly womanly woolly worldly "
    "wooly wrinkly yearly".split()
)


@dataclass
class _Found:
    name: str
    relations: list[str] = field(default_factory=list)


def parse_by_rules(prompt: str) -> list[Entity]:
    """The entities of an English prompt.

    An attribute counts for its noun ("small red cat": 2), a relation for both of its ends ("cat on a mat": 1 each), an
    action without an object for its subject ("a cat sleeping": 1). After a comma a relation belongs to the entity
    before it ("a woman, wearing a hat"), after a full stop to none.
    """
    reader = _Reader()
    for word, following in pairwise([*_TOKEN.findall(prompt.lower()), "."]):
        reader.read(word, following)
    reader.end_phrase()
    reader.end_relation(None)
    return [Entity(entity.name, tuple(entity.relations)) for entity in reader.entities]


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") and word not in _NO_ADVERBS_IN_LY


class _Reader:
    """Reads word by word: a phrase (attributes and a noun) or a relation is open at any time, or nothing."""

    def __init__(self) -> None:
        self.entities: list[_Found] = []
        self.subject: _Found | None = None
        self.phrase: list[str] = []
        self.relation: list[str] = []

    def read(self, word: str, following: str) -> None:
        if not word[0].isalnum():
            self.end_phrase()
            self.end_relation(None)
            if word not in ",:()[]":
                self.subject = None
        elif word in _COPULAS or self._is_relation(word, following):
            self.end_phrase()
            self.relation.append(word)
        elif word in _SKIPPED or _is_adverb(word):
            if word in ("and", "or", "but"):
                self.end_phrase()
                self.end_relation(None)
        else:
            self.phrase.append(word)

    def _is_relation(self, word: str, following: str) -> bool:
        if word in _PREPOSITIONS or _HALVES.get(word) == following:
            return True
        if not word.endswith("ing") or len(word) < 5 or word in _NOUNS_IN_ING:
            return False
        # "a smiling woman" against "a woman smiling at ...": what follows an action is not a bare word
        starts_anew = following in _SKIPPED or following in _PREPOSITIONS or not following[0].isalnum()
        return starts_anew or _is_adverb(following) or (word in _TRANSITIVE and self.subject_is_near())

    def subject_is_near(self) -> bool:
        return bool(self.phrase) or self.subject is not None

    def end_phrase(self) -> None:
        """The words since the last border become an entity, to which an open relation leads."""
        if not self.phrase:
            return
        *attributes, noun = self.phrase
        self.phrase = []
        entity = _Found(noun, attributes)
        self.entities.append(entity)
        self.end_relation(entity)
        self.subject = entity

    def end_relation(self, target: _Found | None) -> None:
        """Books an open relation on both of its ends; without a target only an action counts."""
        words = [word for word in self.relation if word not in _COPULAS] or self.relation
        self.relation = []
        if not words or self.subject is None:
            return
        if target is not None:
            self.subject.relations.append(" ".join([*words, target.name]))
            target.relations.append(" ".join([self.subject.name, *words]))
        elif any(word.endswith("ing") for word in words):
            self.subject.relations.append(" ".join(words))
