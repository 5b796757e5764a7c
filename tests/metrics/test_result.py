from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from unifl.errors import UserError
from unifl.metrics.intervals import Interval
from unifl.metrics.paired import paired_comparison
from unifl.metrics.result import (
    Bench,
    Claim,
    Comparison,
    Metric,
    ModelEntry,
    Rank,
    Result,
    merge_results,
    prompts_sha256,
    read_existing,
    read_result,
    update_result,
    write_result,
)


def entry(**metrics):
    return ModelEntry(
        weights_sha256="ab" * 32,
        sampler="ddim",
        steps=20,
        guidance=2.0,
        spacing="trailing",
        seeds=[0],
        prompts_sha256=prompts_sha256(["a red circle"]),
        metrics={k: Metric(value=v, low=v - 0.1, high=v + 0.1, n=500) for k, v in metrics.items()},
    )


def full_result():
    return Result(
        models={"base@20": entry(overall=0.5), "stage1@20": entry(overall=0.7)},
        comparisons=[
            Comparison(
                a="stage1@20", b="base@20", judge="gold", metric="overall",
                win=0.7, tie=0.2, lose=0.2, low=0.66, high=0.74, n=500,
            )
        ],
        claims=[Claim(id="c", statement="wins", paper="68 %", measured=0.7, low=0.66, high=0.74, n=500, holds=True)],
        bench=[Bench(id="stage1", ratio=1.04, low=1.03, high=1.05, evaluations={"unet_forward": 12.5})],
    )  # fmt: skip


def test_round_trip(tmp_path):
    path = write_result(full_result(), tmp_path / "runs" / "result.json")
    assert read_result(path) == full_result()


def test_file_has_the_documented_keys(tmp_path):
    data = json.loads(write_result(full_result(), tmp_path / "result.json").read_text())
    assert data.keys() == {"schema_version", "models", "comparisons", "ranks", "claims", "bench"}
    assert data["models"]["base@20"].keys() == {
        "weights_sha256", "sampler", "steps", "guidance", "spacing", "seeds", "prompts_sha256", "metrics",
    }  # fmt: skip
    assert data["models"]["base@20"]["metrics"]["overall"].keys() == {"value", "low", "high", "n"}
    assert list(data["comparisons"][0]) == "a b judge metric win tie lose low high n".split()
    assert list(data["claims"][0]) == "id statement paper measured low high n train_seeds holds".split()
    assert list(data["bench"][0]) == "id ratio low high evaluations".split()


def test_a_comparison_counts_a_tie_as_half_a_win():
    paired = paired_comparison(np.array([[1.0], [0.5], [0.5], [0.0]]), np.full((4, 1), 0.5))
    row = Comparison.of(paired, a="a", b="b", judge="gold")
    assert (row.win, row.tie, row.lose, row.n) == (0.5, 0.5, 0.25, 4)
    assert Metric.of(Interval(1.0, 0.5, 2.0, 3)) == Metric(value=1.0, low=0.5, high=2.0, n=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("schema_version"), "schema_version is None"),
        (lambda d: d.update(schema_version=99), "schema_version is 99, this version of unifl reads 1"),
        (lambda d: d.update(comparison=[]), "unknown key at comparison; did you mean 'comparisons'"),
        (lambda d: d["models"]["base@20"].pop("steps"), r"models\.base@20\.steps"),
        (lambda d: d["models"]["base@20"].update(spacings="x"), "did you mean 'spacing'"),
        (lambda d: d["models"]["base@20"]["metrics"]["overall"].update(value="high"), "overall.value"),
        (lambda d: d["models"]["base@20"]["metrics"]["overall"].update(low=2.0), "low 2.0 is above high"),
        (lambda d: d["comparisons"][0].update(win=0.9), "win counts a tie as half"),
        (lambda d: d["claims"][0].update(holds="maybe"), "holds"),
    ],
)
def test_a_file_that_breaks_the_schema_is_an_error_that_names_the_place(tmp_path, change, message):
    path = write_result(full_result(), tmp_path / "result.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        read_result(path)


def test_a_missing_or_broken_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_result(tmp_path / "result.json")
    for text in ("{", "[]", "null"):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(UserError, match=r"result\.json"):
            read_result(tmp_path / "result.json")


def test_nothing_is_written_when_a_number_is_not_finite(tmp_path):
    path = write_result(full_result(), tmp_path / "result.json")
    before = path.read_bytes()
    broken = full_result()
    broken.models["base@20"].metrics["overall"].value = float("nan")
    with pytest.raises(UserError, match="finite"):
        write_result(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_merging_joins_metrics_of_the_same_samples_and_replaces_others():
    new = full_result()
    new.models = {"base@20": entry(structure=0.6), "stage1@20": entry(structure=0.8)}
    new.models["stage1@20"].weights_sha256 = "cd" * 32
    new.comparisons[0].win, new.comparisons[0].lose = 0.8, 0.1
    merged = merge_results(full_result(), new)
    assert merged.models["base@20"].metrics.keys() == {"overall", "structure"}
    assert merged.models["stage1@20"].metrics.keys() == {"structure"}  # other weights: old figures are void
    assert [row.win for row in merged.comparisons] == [0.8]
    assert len(merged.claims) == len(merged.bench) == 1


@pytest.mark.parametrize("changed", ["stage1@20", "base@20"])
def test_a_model_with_other_weights_takes_its_old_comparisons_with_it(changed):
    new = Result(models={changed: entry(overall=0.6)})
    assert len(merge_results(full_result(), new).comparisons) == 1  # the same samples: they stay
    new.models[changed].weights_sha256 = "cd" * 32
    other = Result(comparisons=[dataclasses.replace(full_result().comparisons[0], a="stage2@4", b="base@4")])
    old = merge_results(full_result(), other)
    assert [row.a for row in merge_results(old, new).comparisons] == ["stage2@4"]


def test_what_will_be_merged_into_is_empty_or_readable(tmp_path):
    assert read_existing(tmp_path / "result.json") == Result()
    path = write_result(full_result(), tmp_path / "result.json")
    assert read_existing(path) == full_result()
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_existing(path)


def test_updating_a_file_keeps_what_it_held(tmp_path):
    path = tmp_path / "result.json"
    update_result(path, Result(models={"base@4": entry(overall=0.4)}))
    update_result(path, Result(models={"base@20": entry(overall=0.5)}))
    assert list(read_result(path).models) == ["base@4", "base@20"]


def test_prompt_hash_depends_on_order_and_text():
    assert prompts_sha256(["a", "b"]) != prompts_sha256(["b", "a"])
    assert prompts_sha256(["a", "b"]) == prompts_sha256(iter(["a", "b"]))


def test_ranks_are_of_models_that_were_evaluated_together():
    def ranks(*names, metric="overall"):
        return [
            Rank(model=name, judge="gold", metric=metric, strength=0.0, low=-1.0, high=1.0, n=9)
            for name in names
        ]

    old = Result(models={"a": entry(), "b": entry()}, ranks=ranks("a", "b") + ranks("a", "b", metric="x"))
    new = Result(models={"c": entry()}, ranks=ranks("a", "c"))
    assert merge_results(old, new).ranks == ranks("a", "b", metric="x") + ranks("a", "c")
    retrained = Result(models={"a": dataclasses.replace(entry(), weights_sha256="cd" * 32)})
    assert merge_results(old, retrained).ranks == []
