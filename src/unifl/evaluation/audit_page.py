"""The page of an audit: verdict, curves, numbers and a strip of pictures per checkpoint, in one self-contained file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from unifl.disk import write_atomically
from unifl.evaluation.audit import Curve
from unifl.evaluation.audit_findings import RECORD, AuditFindings, write_record
from unifl.evaluation.audit_look import SIGNS, AuditLook
from unifl.evaluation.grid import picture_grid
from unifl.evaluation.plots import Chart, FittedCurve, drift_chart, line_chart
from unifl.evaluation.report_inputs import png_bytes
from unifl.evaluation.reward_curve import RewardCurve

PAGE = "audit.html"
STRIP = 8
"""Pictures of each checkpoint that are shown."""
_PIXELATED_UP_TO = 128
_DRAWN_AT = 60  # points along a fitted curve


def write_audit(
    folder: Path,
    findings: AuditFindings,
    looks: Sequence[AuditLook],
    *,
    prompts: Sequence[str],
    samples: int,
    title: str,
) -> None:
    """Write `audit.json` and `audit.html`.

    Args:
        folder: Gets both.
        findings: What was found.
        looks: At the start and the checkpoints, for their first pictures: of `STRIP` prompts, as far as there are.
        prompts: What was drawn.
        samples: Pictures of each prompt, of which the strips show the first.
        title: Name of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unifl.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("audit.html.j2").render(
        title=title,
        findings=findings,
        outcome=findings.outcome,
        drift=_against_drift(findings),
        charts=_over_steps(findings),
        curves=[
            (name, _peak(curve), curve)
            for name, curve in (
                ("reward", findings.reward_curve),
                ("held-out score", findings.held_out_curve),
            )
            if curve is not None
        ],
        scores=list(findings.checkpoints[0].scores),
        signs=[name for name in SIGNS if name in findings.checkpoints[0].ratios],
        strips=_strips(findings, looks, samples),
        prompts=list(prompts[:STRIP]),
        number=len(prompts),
        samples=samples,
    )
    write_atomically(folder / PAGE, page.encode())
    write_record(folder / RECORD, findings)


def _against_drift(findings: AuditFindings) -> Chart:
    series = []
    for name, curve in (("reward", findings.reward_curve), ("held_out", findings.held_out_curve)):
        points = [(row.drift, getattr(row, name)) for row in findings.checkpoints]
        drift = np.array([at for at, _ in points])
        along = np.linspace(0, drift.max(), _DRAWN_AT)[1:]
        series.append(
            FittedCurve(
                name="reward" if name == "reward" else "held-out score",
                points=tuple((at, one.value, one.low, one.high) for at, one in points),
                line=() if curve is None else tuple(zip(along.tolist(), curve(along).tolist(), strict=True)),
            )
        )
    return drift_chart("reward and held-out score against drift", series, mark=findings.kept.drift)


def _over_steps(findings: AuditFindings) -> list[Chart]:
    rows = findings.checkpoints
    steps = tuple(row.step for row in rows)

    def curve(name: str, values: Sequence[float]) -> Curve:
        return Curve(name, steps, tuple(values))

    groups = {
        "reward and held-out score, deviations of the start": [
            curve("reward", [row.reward.value for row in rows]),
            curve("held-out score", [row.held_out.value for row in rows]),
        ],
        "detail, saturation and diversity, ratios to the start": [
            curve(name, [row.ratios[name] for row in rows]) for name in SIGNS if name in rows[0].ratios
        ],
        "drift from the start, root of nats": [curve("drift", [row.drift for row in rows])],
        "distance from the start's pictures": [curve("distance", [row.distance for row in rows])],
    }
    return [line_chart(title, lines) for title, lines in groups.items() if lines]


def _peak(curve: RewardCurve) -> str:
    if np.isinf(curve.low):
        return "has not turned down by the last checkpoint"
    low, high = (
        "beyond the last checkpoint" if np.isinf(end) else f"{end:.3g}" for end in (curve.low, curve.high)
    )
    return f"peak at drift {'beyond' if np.isinf(curve.peak) else f'{curve.peak:.3g}'} [{low}, {high}]"


def _strips(findings: AuditFindings, looks: Sequence[AuditLook], samples: int) -> str:
    """The first pictures of the start and of every checkpoint, one row each, as the text of an `img`."""
    rows = [[picture.float() / 255 for picture in look.pictures[::samples][:STRIP]] for look in looks]
    scale = 2 if rows[0][0].shape[-1] <= _PIXELATED_UP_TO else 1
    names = [f"{row.name}{' (kept)' if row is findings.kept else ''}" for row in findings.checkpoints]
    grid = picture_grid(rows, rows=names, scale=scale, caption_width=170)
    return "data:image/png;base64," + base64.b64encode(png_bytes(grid)).decode()
