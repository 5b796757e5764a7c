from __future__ import annotations

import re

from unifl.evaluation.report import render_report
from unifl.evaluation.report_inputs import ReportInputs
from unifl.evaluation.report_monitor import monitor_panels


def _log(*, looks=4, rewards=("light",), stop=None):
    rows = [{"step": step, "loss/reward": 1.0 / (step + 1)} for step in range(10 * looks)]
    for look in range(looks):
        numbers = {
            "high_frequency": 0.1 + look,
            "high_frequency_ratio": 1 + look / 4,
            "base_distance": look / 100,
        }
        numbers |= {"diversity_ratio": 1 - look / 8, "trained/red": look, "trained_change/red": look}
        numbers |= {f"reward_change/{name}": -look for name in rewards}
        rows[10 * look] |= {f"monitor/{name}": value for name, value in numbers.items()}
    rows = rows[: 10 * looks - 9]
    if stop is not None:
        rows[stop]["monitor/stop"] = "it is <high> & rising"
    return rows


def test_a_run_without_a_monitor_has_no_panel():
    assert monitor_panels({"": [{"step": 1, "loss/a": 1.0}, {"step": 2, "loss/a": 0.5}]}) == []


def test_a_panel_says_what_the_last_look_saw():
    (panel,) = monitor_panels({"stage2": _log()})
    assert (panel.name, panel.step, panel.stopped) == ("stage2", 30, "")
    assert panel.last == (
        "energy of fine detail 1.75 times the start's, seed diversity 0.62 times, pictures 0.030 away from the start's"
    )
    assert [len(chart.legend) for chart in panel.charts] == [2, 1, 1, 1]
    assert panel.charts[2].legend == ((1, "red"),) and panel.charts[3].legend == ((1, "light"),)


def test_a_reason_counts_at_the_end_of_the_log_alone():
    assert monitor_panels({"": _log(stop=-1)})[0].stopped == "it is <high> & rising"
    assert monitor_panels({"": _log(stop=10)})[0].stopped == ""  # the run went on with other rules


def test_one_look_has_words_and_no_curve():
    (panel,) = monitor_panels({"": _log(looks=1)})
    assert panel.step == 0 and panel.charts == []


def test_more_rewards_than_colours_go_on_in_a_second_chart():
    (panel,) = monitor_panels({"": _log(rewards=[f"r{number}" for number in range(10)])})
    assert [len(chart.legend) for chart in panel.charts] == [2, 1, 1, 8, 2]
    assert panel.charts[-1].title == "held-out rewards, change from the start (continued)"


def test_the_page_has_a_section_with_escaped_words_and_ids_of_its_own():
    page = render_report(ReportInputs(title="t", logs={"a": _log(stop=-1), "b": _log()}))
    assert '<a href="#monitor">' in page and "it is &lt;high&gt; &amp; rising" in page
    section, curves = page[page.index('<section id="monitor">') :].split('<section id="curves">')
    ids = re.findall(r' id="([^"]+)"', section)
    assert len(ids) > 2 and len(ids) == len(set(ids))
    assert "reward change" not in curves and "loss" in curves
    plain = render_report(ReportInputs(title="t", logs={"a": [{"step": s, "loss/a": s} for s in range(3)]}))
    assert 'id="monitor"' not in plain
