from __future__ import annotations

import importlib.util

import pytest
import torch

from unifl.data.selection import SelectionConfig, select, select_prompts
from unifl.errors import UserError

COLOURS = ("red", "blue", "green", "black")


def _prompts_and_embeddings(number=400, seed=0):
    """Prompts in clusters; every fourth says nothing, and two repeat others."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(60, 16, generator=generator)
    cluster = torch.randint(60, (number,), generator=generator)
    rows = centres[cluster] + 0.3 * torch.randn(number, 16, generator=generator)
    prompts = [f"thing{i}" if i % 4 == 0 else f"small {COLOURS[i % 3]} thing{i}" for i in range(number)]
    prompts[10], prompts[11] = prompts[1], f"  {prompts[2].replace(' ', '   ')} "
    return prompts, rows


def test_the_whole_chain():
    prompts, rows = _prompts_and_embeddings()
    chosen = select_prompts(prompts, rows, SelectionConfig(number=30))
    counts = chosen.counts
    assert (counts.read, counts.duplicated, counts.after_filter) == (400, 2, 298)
    assert 30 < counts.after_compression < 298
    assert counts.selected == len(chosen.indices) == 30
    assert chosen.indices == sorted(set(chosen.indices))
    assert not {10, 11} & set(chosen.indices) and all(index % 4 for index in chosen.indices)
    kept = torch.nn.functional.normalize(rows[chosen.indices], dim=1)
    assert (kept @ kept.T).fill_diagonal_(-1).max() <= 0.8 + 1e-6
    before, after = chosen.similarity["random"], chosen.similarity["selected"]
    assert before.total == after.total == 30
    assert chosen.similarity["read"].total == 398
    assert after.ans < chosen.similarity["read"].ans - 0.1
    assert chosen.mode == "exact" and chosen.check is None
    assert set(chosen.seconds) == {"relations", "embeddings", "compression", "similarity"}


def test_the_seed_alone_decides():
    prompts, rows = _prompts_and_embeddings()
    again = [
        select_prompts(prompts, rows, SelectionConfig(number=30, seed=seed)).indices for seed in (3, 3, 4)
    ]
    assert again[0] == again[1] != again[2]


def test_embeddings_are_scaled_on_a_copy():
    prompts, rows = _prompts_and_embeddings()
    scaled = rows * torch.rand(len(rows), 1).add(0.5)
    before = scaled.clone()
    assert select_prompts(prompts, scaled).indices == select_prompts(prompts, rows).indices
    assert scaled.equal(before)


def test_an_encoder_is_called_once_with_the_different_prompts():
    prompts, rows = _prompts_and_embeddings()
    where, asked = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}, []

    def encoder(texts):
        asked.append(texts)
        return rows[[where[text] for text in texts]]

    chosen = select_prompts(prompts, encoder)
    assert chosen.indices == select_prompts(prompts, rows).indices
    assert len(asked) == 1 and len(asked[0]) == 398


def test_both_readings_of_the_threshold_and_a_parser_of_ones_own():
    prompts = ["cat", "red cat", "small red cat"]
    rows = torch.eye(3)

    def selected(**settings):
        return select_prompts(prompts, rows, SelectionConfig(**settings)).indices

    assert selected() == [1, 2]
    assert selected(threshold_rule="more_than") == [2]
    assert selected(min_relations=0) == [0, 1, 2]
    assert selected(min_relations=2) == [2]
    chosen = select_prompts(prompts, rows, parser=lambda prompt: [(prompt, ["short"] * (len(prompt) < 4))])
    assert chosen.indices == [0]


def test_fewer_than_asked_for_is_all_of_them():
    chosen = select_prompts(["red cat", "blue dog"], torch.eye(2), SelectionConfig(number=5))
    assert chosen.indices == [0, 1] and chosen.counts.selected == 2


def test_approximate_mode_reports_its_check():
    pytest.importorskip("faiss")
    prompts, rows = _prompts_and_embeddings()
    chosen = select_prompts(prompts, rows, SelectionConfig(mode="approximate"))
    assert chosen.mode == "approximate"
    assert chosen.check.checked == chosen.counts.after_compression and chosen.check.above == 0


def test_auto_is_approximate_for_many_and_says_so_when_faiss_is_missing(monkeypatch):
    prompts, rows = _prompts_and_embeddings()
    monkeypatch.setattr(select, "EXACT_UP_TO", 397)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    def never(_texts):
        raise AssertionError("embedded before the error")

    with pytest.raises(UserError, match="needs faiss"):
        select_prompts(prompts, never)
    with pytest.raises(UserError, match="needs faiss"):
        SelectionConfig(mode="approximate")
    monkeypatch.setattr(select, "EXACT_UP_TO", 398)
    assert select_prompts(prompts, rows).mode == "exact"


@pytest.mark.parametrize(("limit", "mode"), [(297, "approximate"), (298, "exact")])
def test_auto_goes_by_what_the_filter_leaves(monkeypatch, limit, mode):
    pytest.importorskip("faiss")
    monkeypatch.setattr(select, "EXACT_UP_TO", limit)
    assert select_prompts(*_prompts_and_embeddings()).mode == mode


def test_an_empty_result_names_the_step_that_removed_all():
    with pytest.raises(
        UserError,
        match=r"the relation filter removed all 2 prompts: .* at least 1 relations \(the most is 0\)",
    ):
        select_prompts(["cat", "dog", "cat "], torch.eye(3))


@pytest.mark.parametrize(
    ("prompts", "embeddings", "message"),
    [
        ([], torch.eye(2), "there are no prompts"),
        (["red cat"], torch.eye(2), r"shape \(2, 2\); they need one row per prompt: \(1, d\)"),
        (["red cat"], lambda texts: torch.eye(2), r"the encoder returned shape \(2, 2\) for 1 prompts"),
        (["red cat", "blue dog"], torch.zeros(2, 2), "2 of 2 embeddings are zero"),
    ],
)
def test_bad_input_is_explained(prompts, embeddings, message):
    with pytest.raises(UserError, match=message):
        select_prompts(prompts, embeddings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_relations": -1}, "min_relations is -1"),
        ({"similarity": 1.5}, r"similarity is 1\.5; a cosine is in \(-1, 1\]"),
        ({"number": 0}, "number is 0"),
    ],
)
def test_settings_out_of_range_are_explained(settings, message):
    with pytest.raises(UserError, match=message):
        SelectionConfig(**settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [("threshold_rule", "write at_least or more_than"), ("mode", "write auto, exact or approximate")],
)
def test_unknown_words_are_explained(name, message):
    # the type checks that run with the tests would come first if it was made in the usual way
    config = SelectionConfig()
    object.__setattr__(config, name, "other")
    with pytest.raises(UserError, match=f"{name} is 'other'; {message}"):
        config.__post_init__()


def test_progress_names_its_step():
    prompts, rows = _prompts_and_embeddings()
    seen = []
    select_prompts(prompts, rows, progress=lambda *step: seen.append(step))
    assert ("relations", 398, 398) in seen and seen[-1][0] == "compression"
