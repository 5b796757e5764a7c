"""One self-contained HTML page about a run: pictures, figures with intervals, curves, settings.

The page loads nothing from anywhere: pictures, charts and styles are inside, and there is no script.
"""

from __future__ import annotations

import base64
import io
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from unifl.evaluation.audit import Curve, audit, curves
from unifl.evaluation.plots import NUM_COLORS, Chart, audit_chart, line_chart
from unifl.evaluation.report_inputs import Pictures, ReportInputs, natural, png_bytes, read_run_folder
from unifl.evaluation.report_monitor import PREFIX as MONITOR
from unifl.evaluation.report_monitor import monitor_panels
from unifl.evaluation.report_tables import base_of, metric_rows, win_bars
from unifl.metrics.result import FILES, Result

PIXELATED_UP_TO = 128  # px; larger pictures are shrunk to THUMBNAIL and drawn smoothly
THUMBNAIL = 288
PREVIEWS = 5  # grids of each name and run
PREVIEW_SIZE = 512
_PACKAGES = ("unifl", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def write_report(
    source: str | Path | ReportInputs, *, out: str | Path | None = None, max_rows: int = 16
) -> Path:
    """Write ``report.html``.

    Args:
        source: a run folder, or inputs put together by hand.
        out: the file to write; ``report.html`` in the run folder when left out.
        max_rows: rows of pictures to show.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder is missing or holds nothing to report.
    """
    inputs = source if isinstance(source, ReportInputs) else read_run_folder(source)
    path = Path(out) if out is not None else _default_path(source)
    page = render_report(inputs, max_rows=max_rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def render_report(inputs: ReportInputs, *, max_rows: int = 16) -> str:
    """The page as text; see ``write_report``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unifl.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result = inputs.result or Result()
    metrics: dict[str, Any] = {name: entry.metrics for name, entry in result.models.items()}
    for name, scored in inputs.scores.items():
        metrics.setdefault(name, scored.metrics)
    metrics = {name: metrics[name] for name in _model_order(metrics, result) if metrics[name]}
    bars = win_bars(result.comparisons)
    audits = _audits(inputs.logs)
    audited = {item["name"] for item in audits}
    charts = {name: _charts(rows, audited=name in audited) for name, rows in inputs.logs.items()}
    return environment.get_template("report.html.j2").render(
        title=inputs.title,
        written=datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"),
        result=result,
        models=list(metrics),
        bases={name: base_of(name, metrics) for name in metrics},
        blocks=metric_rows(metrics, inputs.scores),
        bars=bars,
        headline=[bar for bar in bars if bar.b.startswith("base") and bar.metric == "overall"][:4],
        pictures=_picture_rows(inputs.pictures, result, max_rows),
        audits=audits,
        monitors=monitor_panels(inputs.logs),
        charts={name: found for name, found in charts.items() if found},
        previews=_previews(inputs),
        settings=inputs.settings,
        versions=_versions(),
        times=_times(inputs),
    )


def duration(seconds: float | int) -> str:
    """Seconds in words that fit the size: ``41 s``, ``7 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _default_path(source: str | Path | ReportInputs) -> Path:
    return Path("report.html") if isinstance(source, ReportInputs) else Path(source) / "report.html"


def _model_order(names: Iterable[str], result: Result) -> list[str]:
    listed = [name for name in result.models if name in names]
    return listed + sorted((name for name in names if name not in listed), key=natural)


def _picture_rows(pictures: Pictures | None, result: Result, max_rows: int) -> dict[str, Any] | None:
    if pictures is None:
        return None
    models = _model_order(pictures.images.keys(), result)
    size = max(x.width for images in pictures.images.values() for x in images if x is not None)
    rows = [
        {
            "prompt": prompt,
            "seed": seed,
            "cells": [_data_uri(pictures.images[name][i]) for name in models],
        }
        for i, (prompt, seed) in enumerate(zip(pictures.prompts, pictures.seeds, strict=True))
    ][:max_rows]
    return {
        "models": models,
        "rows": rows,
        "pixelated": size <= PIXELATED_UP_TO,
        "size": size,
        "same_noise": all(entry.sampler != FILES for entry in result.models.values()),
        "left_out": len(pictures.prompts) - len(rows),
    }


def _data_uri(image: Image.Image | None, *, limit: int = THUMBNAIL) -> str | None:
    if image is None:
        return None
    if max(image.size) <= (PIXELATED_UP_TO if limit == THUMBNAIL else limit):
        return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
    small = image.copy()
    small.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _audits(logs: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    found = []
    for name, rows in logs.items():
        outcome = audit(rows)
        if outcome is not None:
            last = outcome.validation[0].steps[-1]
            found.append(
                {"name": name, "audit": outcome, "last": last, "chart": audit_chart(f"{name} audit", outcome)}
            )
    return found


def _charts(rows: list[dict[str, Any]], *, audited: bool) -> list[Chart]:
    """One chart per prefix of the logged keys (``loss/``, ``reward/``, ...), in the order of first appearance.

    Rewards and the validation judge are left out where the audit shows them, and the monitor has its own section.
    """
    groups: dict[str, list[Curve]] = {}
    for key, curve in curves(rows).items():
        if (
            len(curve.values) < 2
            or key.startswith(MONITOR)
            or (audited and key.startswith(("reward/", "validation/")))
        ):
            continue
        group, _, name = key.rpartition("/")
        groups.setdefault(group or key, []).append(Curve(name, curve.steps, curve.values))
    return [
        line_chart(_title(group, part), members[part : part + NUM_COLORS])
        for group, members in groups.items()
        for part in range(0, len(members), NUM_COLORS)
    ]


def _title(group: str, part: int) -> str:
    return group.replace("_", " ").replace("/", " · ") + (" (continued)" if part else "")


def _previews(inputs: ReportInputs) -> dict[str, list[dict[str, Any]]]:
    """By run, a few grids of each name spread over the run; the last one is always among them."""
    shown: dict[str, list[dict[str, Any]]] = {}
    for run, previews in inputs.previews.items():
        for name in dict.fromkeys(p.name for p in previews):
            grids = sorted((p for p in previews if p.name == name), key=lambda p: p.step)
            last = len(grids) - 1
            chosen = sorted({round(i * last / (PREVIEWS - 1)) for i in range(PREVIEWS)})
            shown.setdefault(run, []).extend(
                {"name": name, "step": grids[i].step, "uri": _data_uri(grids[i].image, limit=PREVIEW_SIZE)}
                for i in chosen
            )
    return shown


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"System": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"}


def _times(inputs: ReportInputs) -> dict[str, str]:
    times = {}
    for name, seconds in inputs.seconds.items():
        times[f"training {name}".strip()] = duration(seconds)
    for name, scored in inputs.scores.items():
        times[f"evaluating {name}"] = duration(scored.seconds)
    return times
