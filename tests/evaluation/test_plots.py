"""What the charts of a page show."""

from __future__ import annotations

import re

from unifl.evaluation.audit import Audit, Curve
from unifl.evaluation.plots import audit_chart, line_chart


def curves(number):
    return [Curve(f"reward {k}", (0, 10, 20), (float(k), k + 1.0, k + 0.5)) for k in range(number)]


def looks(svg):
    """(colour, dashes) of every line between points, in the order of drawing."""
    drawn = re.findall(r'<path d="M [^"]*" clip-path[^>]*style="([^"]*)"', svg)
    found = [
        (re.search(r"var\(--s(\d)\)", style), re.search(r"stroke-dasharray: ([^;\"]*)", style))
        for style in drawn
    ]
    return [(int(color[1]), dashes[1] if dashes else "") for color, dashes in found if color]


def test_colours_that_return_have_another_stroke():
    chart = line_chart("many", curves(18))
    drawn = looks(chart.svg)
    assert len(drawn) == 18 and len(set(drawn)) == 18
    assert [color for color, _ in drawn] == [k % 8 + 1 for k in range(18)]
    assert chart.legend[7:9] == ((8, "reward 7"), (1, "reward 8 (dashed)"))
    assert chart.legend[16] == (1, "reward 16 (dotted)")


def test_the_best_step_is_said_above_the_curves():
    every = curves(3)
    audit = Audit(
        rewards=tuple(every[:2]), validation=tuple(every[2:]), best_step=10, judged_by="validation/overall",
        over_optimised=False,
    )  # fmt: skip
    chart = audit_chart("audit", audit)
    assert "best at step 10" in chart.svg
    assert [color for color, _ in looks(chart.svg)] == [1, 2, 3]
