from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from unifl.errors import UserError
from unifl.evaluation.compare import compare_models
from unifl.evaluation.report import duration, render_report, write_report
from unifl.evaluation.report_inputs import ReportInputs, read_run_folder, save_pictures
from unifl.evaluation.report_tables import base_of, metric_rows, win_bars
from unifl.evaluation.suite import evaluate_model, judge_features
from unifl.metrics.intervals import Interval
from unifl.metrics.result import (
    Bench,
    Claim,
    Comparison,
    Metric,
    ModelEntry,
    Result,
    prompts_sha256,
    write_result,
)

from .fakes import PROMPTS, PixelJudge, Sampler

GAINS = {"base@4": 0.0, "base@20": 0.02, "stage2@4": 0.06}


@pytest.fixture(scope="module")
def results():
    reference = judge_features(PixelJudge(), torch.full((12, 3, 8, 8), 0.9))
    return {
        name: evaluate_model(
            Sampler(gain), PROMPTS, PixelJudge(), references={"curated": reference}, diversity_prompts=4
        )
        for name, gain in GAINS.items()
    }


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, results):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    models = {
        name: ModelEntry(
            weights_sha256="0" * 64,
            sampler="ddim",
            steps=int(name.split("@")[1]),
            guidance=2.0,
            spacing="trailing",
            seeds=[0],
            prompts_sha256=prompts_sha256(PROMPTS),
            metrics={key: Metric.of(interval) for key, interval in result.metrics.items()},
        )
        for name, result in results.items()
    }
    comparisons = compare_models(results, [("stage2@4", "base@4"), ("stage2@4", "base@20")], judge="gold")
    claims = [
        Claim(id="c1", statement="Four steps beat the base", paper="80 %", measured=0.9, low=0.8, high=1.0)
    ]
    bench = [Bench(id="unifl stage 2", ratio=1.04, low=1.03, high=1.06, evaluations={"unet_forward": 3})]
    write_result(
        Result(models=models, comparisons=comparisons, claims=claims, bench=bench), folder / "result.json"
    )
    for name, result in results.items():
        result.save(folder / "scores" / f"{name}.npz")
    save_pictures(folder, {name: r.previews for name, r in results.items()}, PROMPTS, [0] * 12)
    part = folder / "stage2"
    (part / "samples").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(part / "samples" / "000040-preview.png")
    (part / "config.yaml").write_text("model: https://example.org/m\nnote: <script>alert(1)</script>\n")
    log = [{"step": s, "loss/adversarial": 1 / s, "reward/detail": s / 40} for s in range(1, 41)]
    log[19]["validation/overall"], log[39]["validation/overall"] = 0.7, 0.6
    (part / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    (part / "timings.jsonl").write_text(
        "".join(json.dumps({"step": s, "seconds": 2.0}) + "\n" for s in range(1, 41))
    )
    return folder


@pytest.fixture(scope="module")
def page(run_folder):
    return write_report(run_folder).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All tags with their attributes, and whether they are balanced."""

    VOID = frozenset("meta img br link".split())

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(page):
    tags = Tags(page)
    assert tags.open == []
    assert not [tag for tag, _ in tags.found if tag in {"script", "link", "iframe", "object"}]
    for _, attributes in tags.found:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), attributes
    outside_settings = re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "http" not in outside_settings and "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_local_links_lead_somewhere_and_ids_are_unique(page):
    tags = Tags(page).found
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for _, a in tags if a.get("href", "").startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets and targets <= set(ids)


def test_every_model_stands_in_table_pictures_and_settings(page):
    for name in GAINS:
        assert f'<div class="head">{name}</div>' in page
        assert re.search(rf"<th>{name}<span>", page)
        assert f"<td>{name}</td>" in page


def test_pictures_are_inside_row_by_row(page, results):
    pictures = [a for tag, a in Tags(page).found if tag == "img" and a["alt"].startswith(tuple(GAINS))]
    assert [a["alt"] for a in pictures[:3]] == [f"{name}: prompt 0" for name in GAINS]
    assert len(pictures) == 3 * 12
    data = base64.b64decode(pictures[2]["src"].partition(",")[2])
    shown = torch.tensor(list(Image.open(io.BytesIO(data)).convert("RGB").getchannel(0).tobytes()))
    expected = results["stage2@4"].previews[0, 0].flatten().mul(255).round()
    torch.testing.assert_close(shown.float(), expected, atol=1, rtol=0)


def test_sections_and_figures(page):
    for anchor in "pictures wins metrics audit curves previews claims speed settings".split():
        assert f'<section id="{anchor}">' in page
    assert "Over-optimised" in page and "checkpoint of step 20" in page
    assert "1 min 20 s" in page  # 40 steps of 2 seconds
    assert "Four steps beat the base" in page
    assert "prefers-color-scheme: dark" in page and "position: sticky" in page and "pixelated" in page


def test_text_from_the_user_is_escaped(page):
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_difference_is_coloured_only_if_its_interval_excludes_zero(results):
    metrics = {name: result.metrics for name, result in results.items()}
    rows = {row.text.label: row for rows in metric_rows(metrics, results).values() for row in rows}
    overall, diversity = rows["Overall"].cells, rows["Seed diversity"].cells
    assert overall[0].change == "" and overall[1].change == ""  # bases
    assert overall[2].verdict == "better" and overall[2].change.startswith("+") and overall[2].best
    assert diversity[2].verdict == "same"
    assert rows["Fréchet distance, curated"].cells[2].verdict == "better"  # it falls
    flipped = {"base@4": results["stage2@4"], "other@4": results["base@4"]}
    rows = metric_rows({name: result.metrics for name, result in flipped.items()}, flipped)
    assert rows["Summary"][0].cells[1].verdict == "worse"


def test_without_scores_there_is_no_difference_to_colour(results):
    metrics = {name: result.metrics for name, result in results.items()}
    cells = [c for rows in metric_rows(metrics, {}).values() for row in rows for c in row.cells]
    assert {c.verdict for c in cells} == {"same"} and {c.change for c in cells} == {""}


def test_the_lowest_distance_is_best_and_ties_as_shown_share_it():
    def interval(value):
        return Interval(value, value, value, 10)

    metrics = {"a": {"frechet_x": interval(20.001), "overall": interval(0.50001)}}
    metrics["b"] = {"frechet_x": interval(30.0), "overall": interval(0.50002)}
    rows = {row.text.label: row for rows in metric_rows(metrics, {}).values() for row in rows}
    assert [c.best for c in rows["Fréchet distance, x"].cells] == [True, False]
    assert [c.best for c in rows["Overall"].cells] == [True, True]


def test_distances_of_a_folder_are_named_and_drift_is_neither_good_nor_bad():
    metrics = {
        name: {
            key: Interval(value, value, value, 10)
            for key in ("recall_my_coco_on_dinov2", "drift_features_from_a@1_on_clip")
        }
        for name, value in (("a@1", 0.1), ("b@1", 0.4))
    }
    rows = {row.text.label: row for row in metric_rows(metrics, {})["Distribution"]}
    recall, drift = rows["Recall, my coco on dinov2"], rows["Drift, from a@1 on clip"]
    assert "share of the my coco set among" in recall.text.meaning
    assert [c.best for c in recall.cells] == [False, True]
    assert [c.best for c in drift.cells] == [False, False] and drift.text.higher is None


def test_base_of_the_same_number_of_steps():
    models = ["base@4", "base@20", "stage2@4", "stage2@20", "refl@8"]
    assert [base_of(m, models) for m in models] == [None, None, "base@4", "base@20", "base@4"]
    assert base_of("a", ["a", "b"]) is None


def test_bars_split_ties_off_the_win_rate():
    row = Comparison(
        a="a", b="b", judge="gold", metric="overall", win=0.6, tie=0.2, lose=0.3, low=0.52, high=0.68, n=9
    )
    bar = win_bars([row])[0]
    assert (bar.wins, bar.ties, bar.losses) == pytest.approx((50, 20, 30))
    assert bar.verdict == "better"


@pytest.mark.parametrize("kept", ["result.json", "samples", "stage2", "scores"])
def test_any_part_alone_makes_a_page(run_folder, tmp_path, kept):
    (tmp_path / kept).symlink_to(run_folder / kept)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert Tags(text).open == []
    assert ('<section id="pictures">' in text) == (kept == "samples")
    assert ('<section id="metrics">' in text) == (kept in {"result.json", "scores"})
    assert ('<section id="curves">' in text) == (kept == "stage2")


def test_pictures_of_one_model_may_be_missing(run_folder, tmp_path):
    save_pictures(tmp_path, {"a@4": torch.rand(2, 3, 8, 8)}, ["x", "y"], [0, 0])
    (tmp_path / "samples" / "b@4").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "samples" / "b@4" / "1.png")
    inputs = read_run_folder(tmp_path)
    assert inputs.pictures.images["b@4"][0] is None
    assert '<div class="none">none</div>' in render_report(inputs)


def test_pictures_of_other_prompts_do_not_stay_in_the_rows(tmp_path):
    pictures = torch.rand(2, 3, 8, 8)
    save_pictures(tmp_path, {"a": pictures}, ["x", "y"], [0, 0])
    save_pictures(tmp_path, {"b": pictures}, ["x", "y"], [0, 0])
    assert read_run_folder(tmp_path).pictures.images.keys() == {"a", "b"}
    save_pictures(tmp_path, {"c": pictures}, ["x", "other"], [0, 0])
    inputs = read_run_folder(tmp_path)
    assert inputs.pictures.images.keys() == {"c"} and inputs.pictures.prompts == ["x", "other"]
    save_pictures(tmp_path, {"c": pictures[:1]}, ["z"], [0])
    assert read_run_folder(tmp_path).pictures.prompts == ["z"]


def test_large_pictures_are_shrunk_and_rows_limited(tmp_path):
    save_pictures(tmp_path, {"a/b@4": torch.rand(3, 3, 400, 400)}, ["x", "y", "z"], [0, 0, 0])
    text = write_report(tmp_path, out=tmp_path / "page.html", max_rows=2).read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 2 and "1 more row" in text and "a/b@4" in text
    assert "pictures pixelated" not in text


def test_folders_that_cannot_be_reported(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(UserError, match="holds nothing to report"):
        write_report(tmp_path)
    (tmp_path / "samples" / "m").mkdir(parents=True)
    (tmp_path / "samples" / "m" / "0.png").write_text("no")
    with pytest.raises(UserError, match=r"0\.png cannot be read as a picture"):
        write_report(tmp_path)


def test_inputs_can_be_put_together_by_hand(tmp_path):
    inputs = ReportInputs(title="by hand", settings={"": "seed: 0"})
    path = write_report(inputs, out=tmp_path / "deep" / "page.html")
    assert "by hand" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("seconds", "text"), [(41.2, "41 s"), (425, "7 min 05 s"), (7800, "2 h 10 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
