"""What the command line prints of figures."""

from __future__ import annotations

from unifl.cli.figures import show_comparisons
from unifl.metrics.result import Comparison


def test_names_are_printed_as_they_are(capsys):
    """Brackets are markup to rich: a name with a closing tag was an error, one with a tag lost it."""
    row = Comparison(
        a="lora [/b]",
        b="base [red]",
        judge="j",
        metric="m",
        win=0.6,
        tie=0.2,
        lose=0.3,
        low=0.5,
        high=0.7,
        n=9,
    )
    show_comparisons([row])
    printed = capsys.readouterr().out
    assert "lora [/b] wins 60.0% against base [red] (50.0% to 70.0%, 9 prompts, by m)" in printed
