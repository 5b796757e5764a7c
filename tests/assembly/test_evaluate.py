from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from assembly_toy import PROMPTS, SAMPLES, Reader

from unifl.assembly.evaluate import Candidate, evaluate_models, object_numbers
from unifl.assembly.model_hash import weights_sha256
from unifl.assembly.recipe import SamplingConfig
from unifl.errors import UserError
from unifl.evaluation import ModelResult
from unifl.metrics import read_result
from unifl.models import LoraTraining, make_generator, save_lora
from unifl.process import ConsistencySampler
from unifl.testing import tiny_pipeline


@pytest.fixture
def generator():
    generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2), roles=["reference"])
    with torch.no_grad():
        for number, parameter in enumerate(generator.trainable_parameters().values()):
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    return generator


def _candidates(generator):
    how = SamplingConfig(num_steps=2, guidance=1.0)
    return {
        "base@2": Candidate(generator=generator, role="reference", sampling=how, batch_size=3),
        "mine@2": Candidate(generator=generator, sampling=how, batch_size=3),
    }


def test_models_of_one_generator_are_evaluated_compared_and_written(generator, tmp_path):
    references = {"curated": torch.stack([sample.image for sample in SAMPLES])}
    done = evaluate_models(
        _candidates(generator),
        PROMPTS,
        Reader(),
        judge_name="toy",
        folder=tmp_path,
        pairs=[("mine@2", "base@2")],
        object_counts=[1, 1, 2, 2],
        references=references,
        seeds=(0, 1),
        diversity_prompts=2,
        num_pictures=3,
    )
    assert read_result(tmp_path / "result.json") == done.result
    metrics = done.result.models["mine@2"].metrics
    assert {"overall", "alignment_one_object", "alignment_two_object", "frechet_curated", "diversity"} <= set(
        metrics
    )
    assert metrics["frechet_curated"].n == 4
    assert done.result.comparisons[0].n == len(PROMPTS)
    assert sorted(path.name for path in (tmp_path / "samples/mine@2").iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
    ]


def test_scores_are_used_again_only_for_the_same_weights_prompts_and_judge(generator, tmp_path):
    drawn = []

    def evaluate(prompts=PROMPTS, judge_name="toy"):
        drawn.clear()
        return evaluate_models(
            _candidates(generator),
            prompts,
            Reader(),
            judge_name=judge_name,
            folder=tmp_path,
            diversity_prompts=0,
            reuse=True,
            progress=lambda name, done, total: drawn.append(name),
        )

    first = evaluate()
    assert set(drawn) == {"base@2", "mine@2"}
    again = evaluate()
    assert drawn == []
    assert again.result == first.result
    evaluate(judge_name="another")
    assert set(drawn) == {"base@2", "mine@2"}
    with torch.no_grad():
        next(iter(generator.trainable_parameters().values())).add_(1)
    evaluate(judge_name="another")
    assert set(drawn) == {"mine@2"}
    evaluate(prompts=PROMPTS[:3], judge_name="another")
    assert set(drawn) == {"base@2", "mine@2"}


def test_scores_are_not_used_again_when_the_judge_of_that_name_sees_differently(generator, tmp_path):
    class Sharper(Reader):
        def features(self, images):
            return 2 * super().features(images)

    drawn = []

    def evaluate(judge):
        drawn.clear()
        evaluate_models(
            _candidates(generator),
            PROMPTS,
            judge,
            judge_name="toy",
            folder=tmp_path,
            references={"curated": torch.stack([sample.image for sample in SAMPLES])},
            diversity_prompts=0,
            reuse=True,
            progress=lambda name, done, total: drawn.append(name),
        )

    evaluate(Reader())
    evaluate(Reader())
    assert drawn == []
    evaluate(Sharper())
    assert set(drawn) == {"base@2", "mine@2"}


@pytest.fixture
def evaluate(generator, tmp_path):
    """Evaluates some of the candidates, perhaps sampled otherwise, and returns what was found and what was drawn."""

    def evaluate(*names, sampling=None, on_picture=None, **options):
        drawn = set()

        def progress(name, done, total):
            drawn.add(name)
            if on_picture is not None:
                on_picture(name)

        models = {name: replace(_candidates(generator)[name], **(sampling or {})) for name in names}
        settings = {"judge_name": "toy", "diversity_prompts": 0, "reuse": True, "progress": progress}
        done = evaluate_models(models, PROMPTS, Reader(), folder=tmp_path, **(settings | options))
        return done, drawn

    return evaluate


def test_scores_of_another_judge_are_not_taken_for_those_of_this_one(evaluate, tmp_path):
    evaluate("base@2", judge_name="validation")
    evaluate("mine@2", judge_name="gold")
    _, drawn = evaluate("base@2", "mine@2", judge_name="gold", pairs=[("mine@2", "base@2")])
    assert drawn == {"base@2"}
    judges = {path.stem: ModelResult.load(path).origin.judge for path in tmp_path.glob("scores/*.npz")}
    assert judges == {"base@2": "gold", "mine@2": "gold"}


def test_an_interrupted_evaluation_goes_on_after_the_last_finished_model(evaluate, tmp_path):
    def stop(name):
        if name == "mine@2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate("base@2", "mine@2", on_picture=stop)
    assert len(list((tmp_path / "samples/base@2").glob("*.png"))) == len(PROMPTS)
    done, drawn = evaluate("base@2", "mine@2")
    assert drawn == {"mine@2"}
    assert list(done.result.models) == ["base@2", "mine@2"]
    assert done.result.models["base@2"].metrics["overall"].n == len(PROMPTS)


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"sampling": SamplingConfig(num_steps=2, guidance=1.0, negative_prompt="blurry")}},
        {"sampling": {"sampling": SamplingConfig(num_steps=2, consistency=ConsistencySampler(kind="tcd"))}},
        {"diversity_prompts": 2},
        {"object_counts": [1, 1, 2, 2]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_scores_are_not_used_again_after_a_change_that_result_json_does_not_show(evaluate, change):
    evaluate("base@2")
    _, drawn = evaluate("base@2", **change)
    assert drawn == {"base@2"}
    _, drawn = evaluate("base@2", **change)
    assert drawn == set()


def test_scores_are_not_used_again_after_another_gamma_or_a_mended_scheduler(evaluate, generator):
    def sampled(gamma):
        sampler = ConsistencySampler(kind="tcd", gamma=gamma)
        return {"sampling": {"sampling": SamplingConfig(num_steps=2, consistency=sampler)}}

    evaluate("base@2", **sampled(0.3))
    assert evaluate("base@2", **sampled(0.3))[1] == set()
    assert evaluate("base@2", **sampled(0.4))[1] == {"base@2"}
    generator.kind = "v_prediction"
    assert evaluate("base@2", **sampled(0.4))[1] == {"base@2"}


def test_two_evaluations_in_one_folder_do_not_mix(evaluate):
    def another(name):
        with pytest.raises(UserError, match="another process works in"):
            evaluate("base@2", sampling={"sampling": SamplingConfig(num_steps=2, guidance=5.0)})

    done, drawn = evaluate("base@2", on_picture=another)
    assert drawn == {"base@2"} and done.models["base@2"].origin.drawn["guidance"] == 1.0


def test_comparisons_are_those_of_the_call_and_by_the_metric_that_was_asked_for(evaluate):
    forth, back = ("mine@2", "base@2"), ("base@2", "mine@2")
    evaluate(*forth, pairs=[forth])
    evaluate(*forth, pairs=[back])
    done, drawn = evaluate(*forth, pairs=[forth])
    assert drawn == set()
    assert [(row.a, row.b) for row in done.comparisons] == [forth]
    assert [(row.a, row.b) for row in done.result.comparisons] == [forth, back]
    done, _ = evaluate(*forth, pairs=[back], metric="structure")
    assert [(row.a, row.b, row.metric) for row in done.comparisons] == [(*back, "structure")]


def test_what_cannot_end_well_is_noticed_early(evaluate, tmp_path):
    seen = []
    with pytest.raises(UserError, match="no metric 'strcture' in these scores; there are alignment"):
        evaluate(
            "base@2",
            "mine@2",
            pairs=[("mine@2", "base@2")],
            metric="strcture",
            on_picture=seen.append,
        )
    assert set(seen) == {"base@2"}
    seen.clear()
    (tmp_path / "result.json").write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema_version is 99"):
        evaluate("mine@2", on_picture=seen.append)
    assert seen == []


def test_a_hash_is_of_the_weights_and_not_of_the_way_they_were_loaded(generator, tmp_path):
    plain = make_generator(tiny_pipeline("sd15"))
    assert weights_sha256(generator, "reference") == weights_sha256(plain)
    assert weights_sha256(generator) != weights_sha256(plain)
    save_lora(generator, tmp_path)
    again = make_generator(
        tiny_pipeline("sd15"), train=LoraTraining(rank=2), lora=tmp_path, roles=["reference"]
    )
    assert weights_sha256(again, "reference") == weights_sha256(generator)


def test_pairs_must_name_models(generator, tmp_path):
    with pytest.raises(UserError, match="no model 'base@4' to compare; there are base@2, mine@2"):
        evaluate_models(
            _candidates(generator),
            PROMPTS,
            Reader(),
            judge_name="toy",
            folder=tmp_path,
            pairs=[("mine@2", "base@4")],
        )


def test_objects_are_counted_in_captions_of_the_world():
    captions = [
        "a small red circle, flat style, white background",
        "a small red circle left of a large blue square, flat style, white background",
        "three large green stars, dotted style, dark background",
    ]
    assert object_numbers(captions) == [1, 2, 3]
