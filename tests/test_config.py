from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from unifl import config
from unifl.errors import UserError


@dataclass(kw_only=True)
class Lora:
    kind: Literal["lora"] = "lora"
    rank: int = 16
    target_modules: list[str] = field(default_factory=lambda: ["to_q", "to_v"])


@dataclass(kw_only=True)
class Full:
    kind: Literal["full"] = "full"
    text_encoder: bool = False


@dataclass(kw_only=True)
class Critic:
    source: str
    weight: float = 1.0


@dataclass(kw_only=True)
class Recipe:
    seed: int = 0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    spacing: Literal["leading", "trailing"] = "trailing"
    folder: Path | None = None
    span: tuple[int, int] = (0, 5)
    train: Lora | Full = field(default_factory=Lora)
    critics: list[Critic] = field(default_factory=list)
    named: dict[str, Critic] = field(default_factory=dict)
    extra: Critic | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.span[0] > self.span[1]:
            raise UserError(f"span starts at {self.span[0]} and ends before it; swap the two")


def test_a_full_recipe_arrives_typed(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """
        seed: 3
        learning_rate: 1e-3          # PyYAML alone reads this as a string
        folder: runs/one
        span: [1, 4]
        train: {kind: full, text_encoder: true}
        critics:
          - {source: solo}
          - {source: style, weight: 2}
        named: {layout: {source: semantic}}
        extra: {source: depth}
        options: {betas: [0.9, 0.99], eps: 1e-8, foreach: null}
        """
    )
    recipe = config.load(path, Recipe)
    assert recipe == Recipe(
        seed=3,
        learning_rate=1e-3,
        folder=Path("runs/one"),
        span=(1, 4),
        train=Full(text_encoder=True),
        critics=[Critic(source="solo"), Critic(source="style", weight=2.0)],
        named={"layout": Critic(source="semantic")},
        extra=Critic(source="depth"),
        options={"betas": [0.9, 0.99], "eps": 1e-8, "foreach": None},
    )
    assert isinstance(recipe.train, Full) and isinstance(recipe.critics[1].weight, float)
    assert config.load(str(path), Recipe) == recipe
    assert config.load(path.read_text(), Recipe) == recipe


def test_nothing_given_means_the_defaults(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("# only a comment\n")
    assert config.load(empty, Recipe) == config.load({}, Recipe) == Recipe()


@given(
    st.builds(
        Recipe,
        seed=st.integers(-(2**40), 2**40),
        learning_rate=st.floats(min_value=1e-30, max_value=1e30),
        folder=st.none() | st.just(Path("a b/c: d")),
        train=st.builds(Lora, rank=st.integers()) | st.builds(Full, text_encoder=st.booleans()),
        critics=st.lists(st.builds(Critic, source=st.text(), weight=st.floats(allow_nan=False)), max_size=3),
        named=st.dictionaries(st.text(), st.builds(Critic, source=st.text()), max_size=3),
    )
)
def test_what_is_written_is_read_back(recipe):
    assert config.load(config.plain(recipe), Recipe) == recipe
    assert config.load(config.dump(recipe), Recipe) == recipe


def test_save_makes_the_folder_and_load_reads_it(tmp_path):
    recipe = Recipe(train=Full(), critics=[Critic(source="solo", weight=1e-5)])
    config.save(recipe, tmp_path / "new" / "config.yaml")
    assert config.load(tmp_path / "new" / "config.yaml", Recipe) == recipe


def test_overrides_reach_everything_and_leave_the_source_alone():
    source = {"critics": [{"source": "solo"}], "train": {"kind": "full"}}
    recipe = config.load(
        source,
        Recipe,
        [
            "learning_rate=1e-5",
            "critics.0.weight=0.5",
            "named.layout.source=semantic",
            "options.weight_decay=1e-2",
            "span=[2, 3]",
            "train={kind: lora, rank: 4}",
            "train.rank=8",
            "folder=a=b",
            "extra.source=x",
            "extra=null",
        ],
    )
    assert recipe.learning_rate == 1e-5
    assert recipe.critics == [Critic(source="solo", weight=0.5)]
    assert recipe.named == {"layout": Critic(source="semantic")}
    assert recipe.options == {"weight_decay": 0.01}
    assert recipe.span == (2, 3)
    assert recipe.train == Lora(rank=8)
    assert recipe.folder == Path("a=b")
    assert recipe.extra is None
    assert source == {"critics": [{"source": "solo"}], "train": {"kind": "full"}}


def test_a_part_of_a_union_may_be_changed_without_naming_the_default_kind():
    assert config.load({}, Recipe, ["train.rank=4"]).train == Lora(rank=4)
    assert config.load({"train": {"kind": "full"}}, Recipe, ["train.text_encoder=true"]).train == Full(
        text_encoder=True
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sed: 1", "unknown key 'sed'; did you mean 'seed'?"),
        ("learning-rate: 1", "unknown key 'learning-rate'; did you mean 'learning_rate'?"),
        ("rank: 4", "unknown key 'rank'; did you mean 'train.rank'?"),
        ("train: {rnk: 4}", "unknown key 'train.rnk'; did you mean 'train.rank'?"),
        ("train: {kind: full, rank: 4}", "unknown key 'train.rank'; valid keys: kind, text_encoder"),
        (
            "critics: [{source: a}, {source: b, wieght: 2}]",
            "unknown key 'critics.1.wieght'; did you mean 'critics.1.weight'?",
        ),
        ("named: {a: {sorce: b}}", "unknown key 'named.a.sorce'; did you mean 'named.a.source'?"),
        ("extra: {sorce: b}", "unknown key 'extra.sorce'; did you mean 'extra.source'?"),
        (
            "train: {kind: lroa}",
            "train has the unknown kind 'lroa'; valid kinds: lora, full; did you mean 'lora'?",
        ),
        ("critics: [{weight: 1}]", "critics.0.source: required, but not given"),
        (
            "seed: one",
            "seed: input should be a valid integer, unable to parse string as an integer, not 'one'",
        ),
        ("seed: 1.5", "seed: input should be a valid integer, got a number with a fractional part, not 1.5"),
        ("learning_rate: -1", "learning_rate: input should be greater than 0, not -1"),
        ("critics: [{source: a, weight: x}]", "critics.0.weight: input should be a valid number"),
        ("spacing: leadin", "spacing: input should be 'leading' or 'trailing', not 'leadin'"),
        ("span: [3, 1]", "span starts at 3 and ends before it; swap the two"),
        ("seed: 1\nseed: 2", "the key 'seed' occurs twice"),
        ("seed: [1", "the recipe is not valid YAML"),
        ("- 1\n- 2", "the recipe must hold `key: value` lines, but it holds a list"),
        ("missing/recipe.yaml", "no recipe at missing/recipe.yaml; check the path"),
    ],
)
def test_mistakes_are_explained(source, message):
    with pytest.raises(UserError) as caught:
        config.load(source, Recipe)
    assert message in str(caught.value)


def test_several_wrong_values_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        config.load("seed: a\nlearning_rate: b", Recipe)
    assert "seed: " in str(caught.value) and "learning_rate: " in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "cannot read the override 'seed'; write key=value, for example seed=1"),
        ("=1", "cannot read the override '=1'"),
        ("train..rank=1", "cannot read the override 'train..rank=1'"),
        ("seed.x=1", "asks for a part of seed, which is the single value 3"),
        (
            "critics.0.weight=1",
            "'0' in the override 'critics.0.weight=1' must be the number of one of 0 entries",
        ),
        ("critics.first.weight=1", "'first' in the override"),
        ("sed=1", "unknown key 'sed'; did you mean 'seed'?"),
        ("span=[1", "the value of span is not valid YAML"),
    ],
)
def test_mistakes_in_overrides_are_explained(override, message):
    with pytest.raises(UserError) as caught:
        config.load({"seed": 3, "critics": []}, Recipe, [override])
    assert message in str(caught.value)


def test_an_unreadable_recipe_names_the_file(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"seed: \xff")
    with pytest.raises(UserError, match=r"cannot read the recipe .*latin\.yaml"):
        config.load(path, Recipe)
    with pytest.raises(UserError, match="cannot read the recipe"):
        config.load(tmp_path, Recipe)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "No"])
def test_words_of_yaml_1_1_stay_words(word):
    assert config.load(f"a: {word}\nb: true\nc: False", dict) == {"a": word, "b": True, "c": False}
    assert config.load({"precision": "bf16"}, dict, [f"precision={word}"]) == {"precision": word}


@dataclass(kw_only=True)
class Plain:
    path: str


@dataclass(kw_only=True)
class Parts:
    parts: dict[str, str | Plain | Lora | Full]


def test_the_one_member_of_a_union_without_a_kind_is_meant_where_none_is_given():
    found = config.load({"parts": {"a": {"path": "x"}, "b": {"kind": "full"}, "c": "y"}}, Parts).parts
    assert found["a"] == Plain(path="x") and isinstance(found["b"], Full) and found["c"] == "y"
    with pytest.raises(UserError, match=r"unknown key 'parts\.a\.pth'; did you mean 'parts\.a\.path'"):
        config.load({"parts": {"a": {"pth": "x"}}}, Parts)
    with pytest.raises(UserError, match=r"parts\.a has the unknown kind 'ful'; .*did you mean 'full'"):
        config.load({"parts": {"a": {"kind": "ful"}}}, Parts)
