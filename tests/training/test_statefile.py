"""State that survives a file."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from unifl.errors import UserError
from unifl.training.statefile import load_state, save_state, sort_header, state_bytes

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(tree=TREES)
def test_nests_come_back(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    save_state(tree, path)
    assert load_state(path) == tree
    assert type(load_state(path)) is type(tree)


def test_tensors_come_back_in_their_type_and_equal_state_gives_equal_bytes(tmp_path):
    shared = torch.arange(6, dtype=torch.uint8)
    state = {
        0: {
            "step": torch.tensor(3.0),
            "half": torch.randn(2, 3).bfloat16().T,
            "a.b": shared,
            "a": {"b": shared},
        },
        "nan": math.nan,
    }
    save_state(state, tmp_path / "one")
    save_state(state, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = load_state(tmp_path / "one")
    assert back[0]["half"].dtype == torch.bfloat16 and torch.equal(back[0]["half"], state[0]["half"])
    assert torch.equal(back[0]["a.b"], shared) and torch.equal(back[0]["a"]["b"], shared)
    assert back[0]["step"].shape == () and math.isnan(back["nan"])
    assert state_bytes(state) == 4 + 12 + 6 + 6


def test_keys_that_look_alike_do_not_collide(tmp_path):
    state = {
        "a.b": torch.tensor([1]),
        "a": {"b": torch.tensor([2])},
        1: torch.tensor([3]),
        "1": torch.tensor([4]),
    }
    save_state(state, tmp_path / "state")
    back = load_state(tmp_path / "state")
    assert [back["a.b"], back["a"]["b"], back[1], back["1"]] == [1, 2, 3, 4]


def test_equal_files_get_equal_bytes_whatever_the_order_of_their_metadata(tmp_path):
    metadata = {f"key {number}": "Größe \n" * number for number in range(9)}
    for number in range(3):
        save_file({"b": torch.ones(2), "a": torch.zeros(3)}, tmp_path / f"{number}", metadata=metadata)
        sort_header(tmp_path / f"{number}")
    assert len({(tmp_path / f"{number}").read_bytes() for number in range(3)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == metadata and file.get_tensor("b").tolist() == [1, 1]


def test_other_things_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a is a set"):
        save_state({"a": {1, 2}}, tmp_path / "state")
    (tmp_path / "text").write_text("not a state file at all")
    with pytest.raises(UserError, match="cannot read the state file"):
        load_state(tmp_path / "text")
    with pytest.raises(UserError, match="cannot read the state file"):
        load_state(tmp_path / "missing")
