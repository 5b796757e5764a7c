"""What was measured on one model, what it depends on, and the file that keeps both."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from unifl.disk import read_arrays, write_atomically
from unifl.errors import UserError
from unifl.evaluation.scores import ScoreTable
from unifl.metrics.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where scores come from: those of equal origin would come out equal again.

    Attributes:
        judge: name of the judge.
        judge_sees: what the judge makes of each reference set: the references may change, too.
        drawn: everything else that scores depend on, as plain JSON values: weights, sampler, prompts, seeds, ...
        judge_fingerprint: what lies behind the judge's name, whose weights may be replaced; "" where nobody has looked.
    """

    judge: str
    judge_sees: dict[str, str]
    drawn: dict[str, Any]
    judge_fingerprint: str = ""


@dataclass(frozen=True)
class ModelResult:
    """What was measured on one model, with everything that a paired comparison needs.

    Attributes:
        metrics: every metric with its interval.
        scores: the judge's scores behind the means.
        diversity: seed diversity of each prompt that it was measured on; empty if it was not measured.
        replicates: bootstrap replicates of each distance, on resamples that all models share.
        previews: the first pictures of the first seed, ``(k, 3, h, w)``; empty after loading from a file.
        seconds: wall-clock time of sampling and judging.
        origin: what all of it depends on; None where nobody has said.
        features: of the picture of each prompt and seed, for distances; None where they are not kept.
    """

    metrics: dict[str, Interval]
    scores: ScoreTable
    diversity: Float[np.ndarray, "q"]
    replicates: dict[str, Float[np.ndarray, "r"]]
    previews: Float[Tensor, "k 3 h w"]
    seconds: float
    origin: Origin | None = None
    features: Float32[np.ndarray, "p s d"] | None = None

    def save(self, path: str | Path) -> Path:
        """Write scores, replicates and metrics as ``.npz`` (pictures are not included)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {
            "prompts": np.array(self.scores.prompts),
            "seeds": np.array(self.scores.seeds),
            "diversity": self.diversity,
            "seconds": np.array(self.seconds),
        }
        if self.origin is not None:
            arrays["origin"] = np.array(json.dumps(asdict(self.origin)))
        if self.features is not None:
            arrays["features"] = self.features
        arrays |= {f"score/{name}": value for name, value in self.scores.values.items()}
        arrays |= {f"replicates/{name}": value for name, value in self.replicates.items()}
        arrays |= {
            f"metric/{name}": np.array([m.value, m.low, m.high, m.n]) for name, m in self.metrics.items()
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())
        return path

    @staticmethod
    def load(path: str | Path) -> ModelResult:
        """Read what ``save`` wrote.

        Raises:
            UserError: The file is damaged, or something else.
        """
        try:
            data = read_arrays(path)
            prompts, seeds = tuple(map(str, data["prompts"])), tuple(map(int, data["seeds"]))
            diversity, seconds = data["diversity"], float(data["seconds"])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path} is not a file of scores ({error}); delete it and evaluate the model again"
            ) from None
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}  # noqa: E731
        metrics = {
            k: Interval(float(v[0]), float(v[1]), float(v[2]), int(v[3])) for k, v in part("metric/").items()
        }
        table = ScoreTable(prompts, seeds, part("score/"))
        empty = torch.zeros(0, 3, 1, 1)
        origin = Origin(**json.loads(str(data["origin"]))) if "origin" in data else None
        kept = data.get("features")
        return ModelResult(metrics, table, diversity, part("replicates/"), empty, seconds, origin, kept)
