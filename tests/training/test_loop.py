"""One training step, cut up in every way, watched and stopped."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from training_toy import Toy, ToyConfig, save_toy, toy_config

from unifl.errors import TrainingStopped, UserError
from unifl.guard import is_training_active
from unifl.methods.base import Method, StepOutput
from unifl.training.config import OptimizerConfig
from unifl.training.logging import read_lines
from unifl.training.loop import train

SGD = {"student": OptimizerConfig(kind="sgd"), "discriminator": OptimizerConfig(kind="sgd")}


def _weights(toy: Toy) -> torch.Tensor:
    parameters = [p.detach().flatten() for name in toy.updates for p in toy.parameters[name]]
    return torch.cat(parameters)


def test_the_toy_is_a_method():
    assert isinstance(Toy(), Method)


def test_batch_8_equals_8_accumulations_and_anything_between(tmp_path):
    found = []
    for rows, accumulation in ((8, 1), (4, 2), (1, 8)):
        toy = Toy(dtype=torch.float64)
        config = toy_config(
            train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            max_train_steps=5,
            optimizers=SGD,
            grad_norm_steps=2,
        )
        results = list(train(toy, config, tmp_path / f"{rows}"))
        found.append((_weights(toy), [result.numbers() for result in results]))
    for weights, numbers in found[1:]:
        torch.testing.assert_close(weights, found[0][0], rtol=1e-10, atol=1e-12)
        for here, there in zip(numbers, found[0][1], strict=True):
            assert here == pytest.approx(there, rel=1e-9)
    assert (found[0][0] - _weights(Toy(dtype=torch.float64))).abs().max() > 1e-3


def test_each_update_trains_its_own_parameters_only(tmp_path):
    class OneSided(Toy):
        def step(self, update, batch):
            output = super().step(update, batch)
            return output if update == "student" else StepOutput({}, output.metrics)

    toy = OneSided()
    before = {name: [p.detach().clone() for p in toy.parameters[name]] for name in toy.updates}
    result = next(train(toy, toy_config(lr_warmup_steps=0), tmp_path))
    assert all((a != b).any() for a, b in zip(before["student"], toy.parameters["student"], strict=True))
    # the student's loss goes through the discriminator, which must not move by it
    pairs = zip(before["discriminator"], toy.parameters["discriminator"], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert set(result.losses) == {"student/fit", "student/fool"}
    assert "gap" in result.metrics and "discriminator" not in result.learning_rates


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("first", [0, 1])
def test_a_learning_rate_follows_the_steps_where_an_update_has_its_turn_in_every_other_one(tmp_path, first):
    class Turns(Toy):
        def step(self, update, batch):
            output = super().step(update, batch)
            waits = update == "discriminator" and batch.key.step % 2 != first
            return StepOutput({}, output.metrics) if waits else output

    rates = {"student": {}, "discriminator": {}}
    config = toy_config(optimizers={})  # the same course for both
    for result in train(Turns(), config, tmp_path):
        for update, rate in result.learning_rates.items():
            rates[update][result.step] = rate
    assert len(rates["student"]) == 12 and len(rates["discriminator"]) == 6
    assert rates["discriminator"] == {step: rates["student"][step] for step in rates["discriminator"]}


def test_gradient_norms_per_term_are_those_of_the_whole_batch(tmp_path):
    toy = Toy(dtype=torch.float64)
    config = toy_config(
        train_batch_size=2,
        gradient_accumulation_steps=3,
        grad_norm_steps=1,
        max_train_steps=1,
        max_grad_norm=1e-3,
    )
    result = next(train(toy, config, tmp_path))

    from unifl.training.batches import Layout, draw_micro_batches

    fresh = Toy(dtype=torch.float64)
    batch = draw_micro_batches(fresh, Layout(6, 1), seed=0, step=0)[0]
    losses = fresh.step("student", batch).losses
    for name, loss in {**losses, "": sum(losses.values())}.items():
        gradients = torch.autograd.grad(loss, fresh.parameters["student"], retain_graph=True)
        expected = torch.cat([g.flatten() for g in gradients]).norm().item()
        assert result.grad_norms[f"student/{name}".rstrip("/")] == pytest.approx(expected, rel=1e-9)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    moved = {}
    for limit in (None, 1e-3):
        toy = Toy(dtype=torch.float64)
        start = _weights(toy)
        config = toy_config(
            optimizers=SGD, max_grad_norm=limit, learning_rate=1.0, lr_warmup_steps=0, max_train_steps=1
        )
        result = next(train(toy, config, tmp_path / str(limit)))
        count = sum(p.numel() for p in toy.parameters["student"])
        moved[limit] = (_weights(toy) - start)[:count].norm().item()
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[None] == pytest.approx(result.grad_norms["student"], rel=1e-6)


def test_the_average_follows_the_student(tmp_path):
    toy = Toy(dtype=torch.float64)
    expected = None
    for result in train(toy, toy_config(max_train_steps=6), tmp_path):
        now = toy.generator.roles.state("student")["net.0.weight"].clone()
        if expected is None:
            expected = Toy(dtype=torch.float64).generator.network[0].weight.detach()
        decay = min(0.9, (1 + result.step) / (10 + result.step))
        expected = decay * expected + (1 - decay) * now
    torch.testing.assert_close(toy.generator.roles.state("ema")["net.0.weight"], expected)


@pytest.mark.parametrize(
    ("poison", "term"),
    [
        ("loss", "loss term 'fool' is nan"),
        ("reward", "metric 'reward/mean' is"),
        ("gradient", "gradient of 'student'"),
    ],
)
def test_nan_stops_with_the_step_the_term_and_a_checkpoint_that_works(tmp_path, poison, term):
    toy = Toy(config=ToyConfig(poison_step=7, poison=poison))
    with pytest.raises(TrainingStopped, match="step 7") as stopped:
        list(train(toy, toy_config(), tmp_path))
    assert term in str(stopped.value) and str(tmp_path / "checkpoint-4") in str(stopped.value)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 7))

    healthy = Toy()
    with pytest.warns(UserWarning, match="settings differ"):
        results = list(train(healthy, toy_config(), tmp_path, resume_from_checkpoint="latest"))
    assert [result.step for result in results] == list(range(5, 13))
    untouched = Toy()
    list(train(untouched, toy_config(), tmp_path.parent / f"{tmp_path.name}-whole"))
    assert torch.equal(_weights(healthy), _weights(untouched))


def _break(parameter: torch.Tensor) -> None:
    parameter.data.fill_(float("inf"))


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    toy = Toy()
    steps = train(toy, toy_config(), tmp_path)
    with pytest.raises(TrainingStopped, match=r"step 8: trained weights are NaN.*checkpoint-4"):
        for result in steps:
            if result.step == 7:
                # finite while step 8 looks at its numbers, infinite after it
                toy.parameters["student"][3].register_post_accumulate_grad_hook(_break)
    assert not (tmp_path / "checkpoint-8").exists()


def test_without_a_checkpoint_the_message_says_so(tmp_path):
    with pytest.raises(TrainingStopped, match="no checkpoint had been written"):
        list(train(Toy(config=ToyConfig(poison_step=2)), toy_config(), tmp_path))


def test_files_of_a_run(tmp_path):
    toy = Toy()
    calls = []

    def preview(prompts):
        calls.append(list(prompts))
        return torch.rand(3, 3, 8, 8)

    config = toy_config(preview_steps=6, preview_prompts=["a", "b", "c"], checkpoints_total_limit=2)
    results = list(train(toy, config, tmp_path, preview=preview, save_model=save_toy(toy)))
    assert calls == [["a", "b", "c"]] * 3  # before the first step, and twice
    names = sorted(path.name for path in tmp_path.iterdir())
    expected = [
        ".lock",
        "checkpoint-12",
        "checkpoint-8",
        "config.yaml",
        "metrics.jsonl",
        "model",
        "samples",
        "timings.jsonl",
    ]
    assert names == expected
    pictures = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert pictures == [
        "000000-preview.png",
        "000006-points.png",
        "000006-preview.png",
        "000012-points.png",
        "000012-preview.png",
    ]
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert lines == [{"step": result.step, **result.numbers()} for result in results]
    assert [result.checkpoint for result in results if result.checkpoint] == [
        tmp_path / f"checkpoint-{step}" for step in (4, 8, 12)
    ]
    saved = torch.load(tmp_path / "model" / "net.pt")
    assert torch.equal(saved["0.weight"], toy.generator.network[0].weight)
    assert results[-1].remaining_seconds == pytest.approx(0, abs=1e-9)
    assert all("seconds" in line for line in read_lines(tmp_path / "timings.jsonl"))


def test_a_complete_run_is_not_trained_again(tmp_path):
    toy = Toy()
    list(train(toy, toy_config(), tmp_path, save_model=save_toy(toy)))
    again = Toy()
    assert list(train(again, toy_config(), tmp_path, resume_from_checkpoint="latest")) == []
    assert torch.equal(_weights(again), _weights(toy))


def test_the_loop_announces_itself_to_the_guard(tmp_path):
    steps = train(Toy(), toy_config(), tmp_path)
    assert not is_training_active()
    next(steps)
    assert is_training_active()
    steps.close()
    assert not is_training_active()


def test_rows_come_from_the_sources_in_shuffled_epochs(tmp_path):
    toy = Toy()
    list(train(toy, toy_config(max_train_steps=7), tmp_path))  # 28 rows of 7 words
    for epoch in range(4):
        assert sorted(toy.seen_words[7 * epoch : 7 * epoch + 7]) == sorted(toy.sources["words"])
    assert toy.seen_words[:7] != toy.seen_words[7:14]


def test_draws_of_users_own_code_repeat_with_the_run(tmp_path):
    class Dropping(Toy):
        def step(self, update, batch):
            output = super().step(update, batch)
            return StepOutput(output.losses, {f"stray/{update}": torch.rand(())})

    draws = []
    for attempt in range(2):
        torch.manual_seed(attempt)
        results = list(train(Dropping(), toy_config(max_train_steps=3), tmp_path / str(attempt)))
        draws.append([value for result in results for value in result.metrics.values()])
    assert draws[0] == draws[1] and len(set(draws[0])) == 6


def test_metrics_with_one_name_in_two_updates_are_refused(tmp_path):
    class Clashing(Toy):
        def step(self, update, batch):
            return StepOutput(super().step(update, batch).losses, {"same": 1.0})

    with pytest.raises(ValueError, match="two updates of the method report the metric 'same'"):
        next(train(Clashing(), toy_config(), tmp_path))


def test_wrong_requests_fail_before_the_first_step(tmp_path):
    toy = Toy()
    with pytest.raises(UserError, match=r"optimizers.discriminatr belongs to no update.*'discriminator'"):
        train(toy, toy_config(optimizers={"discriminatr": OptimizerConfig()}), tmp_path)
    with pytest.raises(UserError, match="mixed_precision is 'bf16' for training, but the generator"):
        train(toy, toy_config(mixed_precision="bf16"), tmp_path)
    toy.sources = {"points": []}
    with pytest.raises(UserError, match="the data source 'points' is empty"):
        train(toy, toy_config(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_warm_up_that_outlasts_the_run_is_told(tmp_path):
    message = "lr_warmup_steps is 4 and max_train_steps is 4: learning rates never reach their peak; lower"
    with pytest.warns(UserWarning, match=message):
        train(Toy(), toy_config(max_train_steps=4, lr_warmup_steps=4), tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Toy(), toy_config(max_train_steps=4, lr_warmup_steps=3), tmp_path / "b")


def test_settings_of_the_run_are_kept(tmp_path):
    next(train(Toy(), toy_config(seed=3), tmp_path))
    assert "seed: 3" in (tmp_path / "config.yaml").read_text()
    next(train(Toy(), toy_config(), tmp_path / "own", settings="method: toy\n"))
    assert (tmp_path / "own" / "config.yaml").read_text() == "method: toy\n"


def test_a_tracker_gets_the_numbers(tmp_path):
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    class Listening(GeneralTracker):
        name = "listening"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self):
            super().__init__()
            self.seen = []

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            self.seen.append(values)

        def log(self, values, step, **_):
            self.seen.append((step, values))

    tracker = Listening()
    accelerator = Accelerator(log_with=tracker)
    config = toy_config(max_train_steps=2, report_to="listening")
    results = list(train(Toy(), config, tmp_path, accelerator=accelerator))
    assert tracker.seen[0]["optimizers.discriminator.kind"] == "sgd"
    assert (
        tracker.seen[1][0] == 1 and tracker.seen[1][1]["loss/student/fit"] == results[0].losses["student/fit"]
    )
    with pytest.raises(UserError, match="wandb"):
        train(Toy(), toy_config(report_to="wandb"), tmp_path / "other")
    json.dumps(tracker.seen[0])
