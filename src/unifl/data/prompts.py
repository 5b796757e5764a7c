"""Prompts from the files that people already have, for drawing and for training."""

from __future__ import annotations

from pathlib import Path

from unifl.data.suites import load_suite


def load_prompts(path: str | Path) -> list[str]:
    """Read prompts, repeated ones included.

    Args:
        path: A `.txt` file (one prompt per line), a table with a column `prompt` (`.jsonl`, `.tsv`, `.csv` or
            `.parquet`), or a suite as it was published, see `load_suite`.

    Returns:
        The prompts in the order of the file, without surrounding blanks.

    Raises:
        UserError: See `load_suite`.
    """
    return load_suite(path).prompts
