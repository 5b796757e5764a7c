from __future__ import annotations

import json

import pytest

from unifl.errors import UserError
from unifl.evaluation.audit import audit, curves, read_metrics


def rows(validation, steps=100):
    log = [{"step": s, "reward/color": s / steps} for s in range(1, steps + 1)]
    for position, value in enumerate(validation):
        log[(position + 1) * steps // len(validation) - 1]["validation/overall"] = value
    return log


def test_a_reward_that_rises_while_the_judge_falls_is_over_optimisation():
    outcome = audit(rows([0.5, 0.6, 0.65, 0.55]))
    assert (outcome.best_step, outcome.over_optimised, outcome.judged_by) == (75, True, "overall")


def test_no_alarm_while_both_rise_or_within_the_margin():
    assert not audit(rows([0.5, 0.6, 0.65, 0.7])).over_optimised
    assert not audit(rows([0.5, 0.6, 0.65, 0.645])).over_optimised
    falling = [{**row, "reward/color": -row["reward/color"]} for row in rows([0.5, 0.6, 0.65, 0.55])]
    assert not audit(falling).over_optimised  # both fall: something else is wrong


def test_needs_both_reward_and_judge():
    assert audit([{"step": 1, "reward/color": 0.1}]) is None
    assert audit([{"step": 1, "validation/overall": 0.1}]) is None


def test_reads_a_log_with_a_torn_end_and_repeated_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "loss": 3.0},
        {"step": 2, "extra": 1},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0, "extra": 1}]
    path.write_text('{"loss": 1}\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 1"):
        read_metrics(path)


def test_curves_keep_numbers_only():
    found = curves([{"step": 1, "a": 1, "b": "text", "c": True, "d": float("nan")}, {"step": 2, "a": 2.5}])
    assert list(found) == ["a"]
    assert (found["a"].steps, found["a"].values) == ((1, 2), (1.0, 2.5))
