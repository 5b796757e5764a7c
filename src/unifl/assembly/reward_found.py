"""What is kept of a reward model's training: what it learnt from, and a picture of how well calibrated it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from matplotlib.figure import Figure

from unifl.data.preferences import PreferenceIndex
from unifl.metrics.preference_accuracy import PreferenceAccuracy

_INK, _BLUE = "#52514e", "#2a78d6"


def pair_facts(index: PreferenceIndex, rows: Int64[np.ndarray, " m"]) -> dict[str, Any]:
    """The data, how much of it was trained on, and a fingerprint of these pairs.

    Args:
        index: All comparisons.
        rows: Those that were trained on.
    """
    digest = hashlib.sha256()
    for row in rows.tolist():
        pictures = [index.pictures.identity(int(side[row])) for side in (index.win, index.lose)]
        text = "\0".join([index.prompts.at(row) or "", *pictures, str(int(index.tie[row]))])
        digest.update(text.encode(errors="surrogatepass") + b"\n")
    prompts = len(np.unique(index.prompts.codes[rows]))
    return {"data": index.shown, "pairs": len(rows), "prompts": prompts, "pairs_sha256": digest.hexdigest()}


def calibration_png(found: PreferenceAccuracy, path: Path) -> None:
    """Draw how often the picture with the higher reward is the preferred one, by how sure the reward is."""
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    expected = [one.expected for one in found.calibration]
    observed = np.array([one.observed for one in found.calibration])
    error = 1.96 * np.sqrt(observed * (1 - observed) / [one.pairs for one in found.calibration])
    axes.errorbar(
        expected, observed, yerr=error, color=_BLUE, marker="o", markersize=4, linewidth=1.4, elinewidth=0.8
    )
    axes.set_xlabel("probability that the reward gives")
    axes.set_ylabel("how often people agreed")
    axes.set_title(
        f"{found.pairs} held-out pairs, {found.decided.value:.1%} right, scale {found.scale:.3g}",
        loc="left", fontsize=9.5, color=_INK,
    )  # fmt: skip
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(min(0.3, observed.min() - 0.05), 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
