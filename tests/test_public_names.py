from __future__ import annotations

import ast
from pathlib import Path

import pytest

import unifl


@pytest.mark.parametrize("name", unifl.__all__)
def test_every_public_name_is_there(name):
    assert getattr(unifl, name) is not None
    assert name in dir(unifl)


def test_type_checkers_and_the_interpreter_see_the_same_names():
    tree = ast.parse(Path(unifl.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == unifl._HOME


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = unifl.trian
