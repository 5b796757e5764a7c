"""The table of DPG-Bench with its questions."""

from __future__ import annotations

import pytest

from unifl.data.suites import Question, load_suite
from unifl.errors import UserError

COLUMNS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language"
)


def table(path, *rows):
    """Rows of (item, text, number, dependency, question)."""
    lines = [COLUMNS]
    for item, text, number, dependency, question in rows:
        lines.append(f'{item},{text},,{number},"{dependency}",entity,whole,entity - whole (x),"{question}"')
    (path / "dpg_bench.csv").write_text("\n".join(lines) + "\n")
    return path / "dpg_bench.csv"


def test_questions_come_with_their_prompt_each_behind_those_that_it_depends_on(tmp_path):
    rows = [
        ("coco1", "a red cat on a mat", 1, "2,3", "Is the cat, which is red, on the mat?"),
        ("coco1", "a red cat on a mat", 2, "0", "Is there a cat?"),
        ("coco1", "a red cat on a mat", 3, " 0", "Is there a mat?"),
        ("stanford7", "a dog", 1, "0", "Is there a dog?"),
    ]
    first, second = load_suite(table(tmp_path, *rows)).entries
    assert (first.prompt, first.group, second.group) == ("a red cat on a mat", "coco", "stanford")
    assert first.questions == (
        Question(2, "Is there a cat?"),
        Question(3, "Is there a mat?"),
        Question(1, "Is the cat, which is red, on the mat?", (2, 3)),
    )
    assert second.questions == (Question(1, "Is there a dog?"),)


def test_a_table_without_their_columns_has_prompts_alone(tmp_path):
    (tmp_path / "dpg.csv").write_text("item_id,text,dependency\na1,a cat,0\n")
    assert load_suite(tmp_path / "dpg.csv").entries[0].questions == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a1", "x", "one", "0", "q?")], r"line 2 of .* has proposition_id 'one' and dependency '0'"),
        ([("a1", "x", 1, "", "q?")], "dependency ''; write a whole number"),
        ([("a1", "x", 1, "0", " ")], "line 2 of .* has no prompt"),
        ([("a1", "x", 1, "0", "q?"), ("a1", "x", 1, "0", "r?")], "line 3 of .* has question 1 of a1 again"),
        ([("a1", "x", 1, "2", "q?")], "question 1 of a1 in .* depends on 2, which cannot be asked before it"),
        (
            [("a1", "x", 1, "2", "q?"), ("a1", "x", 2, "1", "r?")],
            "question 1 of a1 .* they depend on each other",
        ),
        ([("a1", "x", 1, "0", "q?"), ("a1", "y", 2, "0", "r?")], "has another text for a1"),
    ],
)
def test_malformed_questions_are_named_with_their_place(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load_suite(table(tmp_path, *rows))
