from __future__ import annotations

import pytest

from unifl.errors import TrainingStopped, UserError, nearest


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("learning_rat", "learning_rate"),
        ("learning-rate", "learning_rate"),
        ("LEARNING_RATE", "learning_rate"),
        ("lerning_rate", "learning_rate"),
        ("batchsize", "batch_size"),
        ("seeds", "seed"),
        ("xyzzy", None),
        ("", None),
    ],
)
def test_nearest_finds_what_was_meant(word, expected):
    assert nearest(word, ["seed", "learning_rate", "batch_size"]) == expected


def test_nearest_prefers_the_closest_and_keeps_its_spelling():
    assert nearest("style", ["styles", "Style", "tile"]) == "Style"


def test_nearest_of_nothing():
    assert nearest("seed", []) is None
    assert nearest("seed", iter(["seed"])) == "seed"


def test_a_user_error_is_a_value_error_and_a_stopped_run_is_not():
    assert issubclass(UserError, ValueError)
    assert not issubclass(TrainingStopped, ValueError)
