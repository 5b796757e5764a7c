from __future__ import annotations

import json
from collections import Counter

import pytest

from unifl.data.suites import FORMS, MAX_PROMPT, Wanted, load_suite
from unifl.errors import UserError

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [
            {"class": "bird", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a dog right of a bird",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cup", "count": 1, "color": "red"}],
        "prompt": "a photo of a red cup",
    },
]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def suites(folder):
    """Each published layout, with the groups that its prompts have."""
    for style in ("anime", "photo"):
        write(folder / "hps" / f"{style}.json", json.dumps([f"{style} of a cat", f"{style} of a dog"]))
    for name in ("color_val", "3d_spatial_val", "color_train"):
        write(folder / "compbench" / f"{name}.txt", f"a {name} cup\na {name} dog\n")
    for name in ("partiprompts10", "partiprompts2", "whoops7"):
        write(folder / "dpg" / f"{name}.txt", f"A long text\nof {name}.\n")
    for name in ("2", "10"):
        write(folder / "dpg_numbers" / f"{name}.txt", f"text {name}")
    write(folder / "evaluation_metadata.jsonl", lines(GENEVAL))
    write(folder / "geneval" / "evaluation_metadata.jsonl", lines(GENEVAL))
    header = "Prompt\tCategory\tChallenge\tNote\n"
    write(folder / "PartiPrompts.tsv", header + 'bond\tAbstract\tBasic\t\n"hi" she said\tAnimals\tBasic\tx\n')
    write(
        folder / "drawbench.csv",
        'Prompts,Category\nA red car.,Colors\n"One cat, two\ndogs.",Counting\nA bus.,Colors\n',
    )
    write(
        folder / "dpg_bench.csv",
        "item_id,text,question\npartiprompts1,a cat,cat?\npartiprompts1,a cat,one?\nposescript0,a man,man?\n",
    )
    write(
        folder / "pick.jsonl", lines([{"caption": text, "best": 1} for text in ("cat", "dog", "cat", "bird")])
    )
    write(folder / "pick.csv", "caption,user\ncat,1\ndog,2\ncat,3\n")
    write(folder / "all.json", json.dumps({"anime": ["a"], "photo": ["b", "c"]}))
    write(folder / "mine.txt", "a cat\n\n a dog \n")
    write(folder / "mine.jsonl", lines([{"prompt": "a cat"}, {"prompt": "a dog"}]))
    write(folder / "mine.csv", "id,prompt\n1,a cat\n2,a dog\n")
    return {
        "hps": ("hpsv2", {"anime": 2, "photo": 2}),
        "hps/photo.json": ("hpsv2", {"photo": 2}),
        "all.json": ("hpsv2", {"anime": 1, "photo": 2}),
        "compbench": ("t2i_compbench", {"color": 2, "3d_spatial": 2}),
        "compbench/color_train.txt": ("t2i_compbench", {"color": 2}),
        "dpg": ("dpg", {"partiprompts": 2, "whoops": 1}),
        "dpg_numbers": ("dpg", {None: 2}),
        "dpg_bench.csv": ("dpg", {"partiprompts": 1, "posescript": 1}),
        "evaluation_metadata.jsonl": (
            "geneval",
            {"single_object": 1, "counting": 1, "position": 1, "color_attr": 1},
        ),
        "geneval": ("geneval", {"single_object": 1, "counting": 1, "position": 1, "color_attr": 1}),
        "PartiPrompts.tsv": ("partiprompts", {"Abstract": 1, "Animals": 1}),
        "drawbench.csv": ("drawbench", {"Colors": 2, "Counting": 1}),
        "pick.jsonl": ("pick_a_pic", {None: 3}),
        "pick.csv": ("pick_a_pic", {None: 2}),
        "mine.txt": ("plain", {None: 2}),
        "mine.jsonl": ("plain", {None: 2}),
        "mine.csv": ("plain", {None: 2}),
    }


def test_each_format_is_recognised_and_grouped(tmp_path):
    seen = set()
    for name, (form, groups) in suites(tmp_path).items():
        found = load_suite(tmp_path / name)
        assert (found.form, dict(Counter(entry.group for entry in found.entries))) == (form, groups), name
        assert load_suite(tmp_path / name, form) == found
        seen.add(form)
    assert seen == set(FORMS)


def test_prompts_are_those_of_the_files_in_their_order(tmp_path):
    suites(tmp_path)

    def prompts(name):
        return load_suite(tmp_path / name).prompts

    assert prompts("hps") == ["anime of a cat", "anime of a dog", "photo of a cat", "photo of a dog"]
    assert prompts("PartiPrompts.tsv") == ["bond", '"hi" she said']  # quotes are text
    assert prompts("drawbench.csv") == ["A red car.", "One cat, two\ndogs.", "A bus."]
    names = ("partiprompts2", "partiprompts10", "whoops7")
    assert prompts("dpg") == [f"A long text of {name}." for name in names]
    assert prompts("pick.jsonl") == ["cat", "dog", "bird"]
    assert prompts("compbench")[:2] == [
        "a color_val cup",
        "a color_val dog",
    ]  # what is for training is not in it


def test_geneval_says_what_should_be_there(tmp_path):
    suites(tmp_path)
    single, counting, position, color = load_suite(tmp_path / "evaluation_metadata.jsonl").entries
    assert single.include == (Wanted("bench", 1),) and single.exclude == ()
    assert counting.exclude == (Wanted("clock", 3),)
    assert position.include[1] == Wanted("dog", 1, None, ("right of", 0))
    assert color.include == (Wanted("cup", 1, "red"),)


TABLES = {
    "partiprompts": [
        {"Prompt": "bond", "Category": "Abstract", "Challenge": "Basic", "Note": None},
        {"Prompt": '"hi" she said', "Category": "Animals", "Challenge": "Basic", "Note": "x"},
    ],
    "drawbench": [
        {"Prompts": "A red car.", "Category": "Colors"},
        {"Prompts": "A bus.", "Category": "Counting"},
    ],
    "pick_a_pic": [{"caption": "cat", "user": 1}, {"caption": "dog", "user": 2}],
    "plain": [{"id": 1, "prompt": "a cat"}, {"id": 2, "prompt": "a dog"}],
    "dpg": [
        {
            "item_id": f"coco{i}",
            "text": f"cat {i}",
            "proposition_id": 1,
            "dependency": "0",
            "question_natural_language": "A cat?",
        }
        for i in range(2)
    ],
}


def save_table(path, rows):
    if path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        write(path, lines(rows))
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        # quotes are text between tabs, and doubled between commas
        cells = [[str("" if value is None else value) for value in row.values()] for row in rows]
        if comma == ",":
            cells = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
        write(path, "\n".join(comma.join(row) for row in [list(rows[0]), *cells]) + "\n")
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("form", TABLES)
def test_a_table_is_the_same_suite_in_each_of_its_file_formats_and_in_any_case(tmp_path, form, ending):
    rows = TABLES[form]
    text = next(name for name in ("Prompt", "Prompts", "caption", "prompt", "text") if name in rows[0])
    found = load_suite(save_table(tmp_path / f"train-00000-of-00001{ending}", rows))
    assert found.form == form and found.prompts == [row[text] for row in rows]
    assert (found.groups is None) == (form in ("plain", "pick_a_pic"))
    if form in ("partiprompts", "drawbench"):
        assert found.groups == [row["Category"] for row in rows]
    if form == "dpg":
        assert [entry.questions[0].text for entry in found.entries] == ["A cat?"] * 2
    for change in (str.lower, str.upper):
        other = [{change(name): value for name, value in row.items()} for row in rows]
        assert load_suite(save_table(tmp_path / f"other{ending}", other)) == found


def test_a_table_that_is_none_of_its_format_is_named(tmp_path):
    path = save_table(tmp_path / "a.parquet", [{"prompt": "cat"}, {"prompt": None}])
    with pytest.raises(UserError, match="row 2 of .* has no prompt"):
        load_suite(path)
    with pytest.raises(UserError, match="is a table, and geneval is none"):
        load_suite(path, "geneval")
    with pytest.raises(UserError, match="names no column 'prompts'; it has prompt"):
        load_suite(path, "drawbench")


def test_drawbench_beside_the_styles_of_hpsv2_is_not_one_of_them(tmp_path):
    for name in ("anime", "concept-art", "drawbench", "paintings", "photo"):
        write(tmp_path / "benchmark" / f"{name}.json", json.dumps([f"{name} of a cat"]))
    styles = ["anime", "concept-art", "paintings", "photo"]
    assert load_suite(tmp_path / "benchmark").groups == styles
    assert load_suite(tmp_path / "benchmark/drawbench.json").groups == ["drawbench"]
    write(tmp_path / "alone/drawbench.json", '["a cat"]')
    with pytest.raises(UserError, match="has no .json files of styles"):
        load_suite(tmp_path / "alone")


def test_parquet_is_read_without_its_pictures(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table({"caption": ["cat", "dog", "cat"], "jpg_0": [b"no picture"] * 3})
    parquet.write_table(table, tmp_path / "validation_unique.parquet")
    found = load_suite(tmp_path / "validation_unique.parquet")
    assert (found.form, found.prompts) == ("pick_a_pic", ["cat", "dog"])
    write(tmp_path / "broken.parquet", "PAR1")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load_suite(tmp_path / "broken.parquet")


def test_a_few_prompts_are_taken_of_every_group(tmp_path):
    write(tmp_path / "a.json", json.dumps({"x": ["x0", "x1", "x2", "x3"], "y": ["y0", "y1"], "z": ["z0"]}))
    suite = load_suite(tmp_path / "a.json")
    assert suite.first(5).prompts == ["x0", "x1", "y0", "y1", "z0"]
    assert suite.first(100) is suite
    write(tmp_path / "a.txt", "a\nb\nc\n")
    assert load_suite(tmp_path / "a.txt").first(2).prompts == ["a", "b"]
    assert load_suite(tmp_path / "a.txt").groups is None


LONG = "x" * (3 * 2**20)
HEADER = "Prompt\tCategory\tChallenge\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", HEADER + "cat\tAnimals\tBasic\ndog\n", r"line 3 of .* has 1 columns, and line 1 names 3"),
        ("a.tsv", HEADER + "cat\ta\tb\tc\td\n", r"line 2 of .* has 5 columns"),
        ("a.tsv", HEADER + "\tAnimals\tBasic\n", r"line 2 of .* has no prompt"),
        ("a.tsv", HEADER + f"{LONG}\tAnimals\tBasic\n", r"line 2 of .*(3,145,728 characters|field larger)"),
        (
            "a.tsv",
            "text\tkind\ncat\tx\n",
            "the columns of .* are text, kind; call the one with the prompts `prompt`",
        ),
        ("a.csv", 'Prompts,Category\nfine,x\n"open,x\n', r"line 3 of .* is no row of a table"),
        ("a.csv", "item_id,text\na1,cat\na1,dog\n", r"line 3 of .* another text for a1 than line 2"),
        ("a.txt", f"fine\n{LONG}\n", r"line 2 of .* 3,145,728 characters, and at most 10,000"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": 3}\n', r"line 3 of .* has no prompt"),
        ("a.jsonl", lines(GENEVAL) + "{", r"line 5 of .* is not JSON"),
        ("a.json", '["a",\n "b"\n', r"line 3 of .* is not JSON"),
        ("a.json", '["a", "b", 3]', r"entry 3 of .* has no prompt"),
        ("a.json", '{"anime": "a"}', r"holds no list of prompts for 'anime'"),
        ("a.yaml", "x", "use a .txt, .jsonl, .json"),
    ],
)
def test_malformed_rows_are_named(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        load_suite(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"include": []}, "line 1 of .* needs tag and include"),
        ({"tag": None}, "needs tag and include"),
        ({"include": [{"count": 1}]}, "include 0 of line 1 of .* names no class"),
        ({"include": [{"class": "cat", "count": 0}]}, "has count 0"),
        ({"include": [{"class": "cat", "count": 1, "size": "big"}]}, "has size, for which there is no rule"),
        ({"include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "an earlier clause"),
        (
            {
                "include": [
                    {"class": "cat", "count": 1},
                    {"class": "dog", "count": 1, "position": ["near", 0]},
                ]
            },
            "write one of left of, right of",
        ),
        ({"exclude": {"class": "cat"}}, "exclude of line 1 of .* is no list"),
    ],
)
def test_geneval_rows_without_a_rule_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_suite(write(tmp_path / "a.jsonl", lines([{**GENEVAL[0], **change}])))


def test_a_wrong_name_is_explained(tmp_path):
    file = write(tmp_path / "a.txt", "a cat\n")
    with pytest.raises(UserError, match="did you mean 'partiprompts'"):
        load_suite(file, "parti_prompts")
    with pytest.raises(UserError, match="no suite format 'coco'; there are hpsv2"):
        load_suite(file, "coco")
    with pytest.raises(UserError, match="there is no file or folder"):
        load_suite(tmp_path / "b.txt")
    with pytest.raises(UserError, match="is a folder, and plain is a file"):
        load_suite(tmp_path, "plain")
    with pytest.raises(UserError, match=r"holds no \.txt and no \.json"):
        (tmp_path / "empty").mkdir()
        load_suite(tmp_path / "empty")
    with pytest.raises(UserError, match="names no column 'prompts'"):
        load_suite(write(tmp_path / "b.csv", "prompt\ncat\n"), "drawbench")


def test_a_file_that_is_no_list_by_its_size_is_not_read(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(2**30 + 2**20)
    with pytest.raises(UserError, match="has 1025 MB, and lists of prompts are taken up to 1024"):
        load_suite(path)
    write(tmp_path / "b.txt", "x" * MAX_PROMPT)
    assert load_suite(tmp_path / "b.txt").prompts == ["x" * MAX_PROMPT]
