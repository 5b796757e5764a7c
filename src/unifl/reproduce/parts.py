"""Independent pieces of a reproduction: what is trained, how it is drawn, and the file of the judge's scores."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from unifl.disk import read_arrays, write_atomically
from unifl.errors import UserError
from unifl.world.assets import ASSETS

_FEATURES, _LOG = "features", "log:"

PromptSet = Literal["held_out", "unknown", "fresh", "fresh_again", "fresh_once_more"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """One way of drawing a model; the judge reads what it draws.

    Attributes:
        name: What figures call it.
        num_steps: Guidance and spacing are those of the run; of the packaged model, the best on record at this number.
            None is what the run says.
        guidance: In place of that.
        checkpoint: Training step of the checkpoint; None is the end, and 0 what the run started from.
        prompts: "held_out", or those of them that name a concept which the critic of `unknown.py` never saw; "fresh"
            ones share none with either, for what is fixed after those were looked at, nor "fresh_again" and
            "fresh_once_more" ones with any before them.
        real: Real pictures in place of drawn ones, for distances to them.
    """

    name: str = "end"
    num_steps: int | None = None
    guidance: float | None = None
    checkpoint: int | None = None
    prompts: PromptSet = "held_out"
    real: bool = False


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model of a reproduction, trained once per seed.

    Attributes:
        name: What figures call it.
        recipe: A recipe of the package; None is the packaged model as it is.
        changes: Overrides; `$prepared` and `$runs` stand for the folders of small files that were
            prepared, and of large ones.
        start: The training, of the same seed, whose result this one starts from.
        start_as: As what: a LoRA, or the student of a full training.
        run: The training, of equal recipe and changes, whose runs are judged here in further ways.
        first_seed: Added to the seeds of the reproduction: another one has runs and noise that nobody has looked at.
        needs: Names of what must be prepared before.
        looks: How it is judged.
        logs: Columns of the run's metrics that are kept.
        once: Trained with the first seed alone.
        audited: Whether the run is audited, before gold sees it; what was found is kept with what was prepared.
        audit_prompts: The number of prompts that the audit looks at, of the 477 of validation.
    """

    name: str
    recipe: str | None = None
    changes: tuple[str, ...] = ()
    start: str | None = None
    start_as: Literal["lora", "student"] = "lora"
    run: str | None = None
    first_seed: int = 0
    needs: tuple[str, ...] = ()
    looks: tuple[Look, ...] = field(default=(Look(),))
    logs: tuple[str, ...] = ()
    once: bool = False
    audited: bool = False
    audit_prompts: int = 64

    def seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        """Those of the seeds that it is trained with."""
        return seeds[:1] if self.once else seeds

    def origin(self, seed: int, *, prompts: int, settings: str) -> str:
        """Everything that its scores depend on, as text: two pieces of equal origin have equal scores.

        Args:
            seed: Of the training, and of the noise that is drawn with.
            prompts: Number of prompts.
            settings: The text of the recipe, and whatever else counts.
        """
        later = {
            "run": None,
            "first_seed": 0,
            "start_as": "lora",
            "logs": (),
            "once": False,
            "audited": False,
            "audit_prompts": 64,
        }  # fields that say nothing at their default, so that no piece grows old
        said = {key: value for key, value in asdict(self).items() if key not in later or value != later[key]}
        for look in said["looks"]:
            if not look["real"]:
                del look["real"]
        described = said | {
            "seed": seed,
            "number": prompts,
            "settings": settings,
            "world": world_sha256(),
        }
        return json.dumps(described, sort_keys=True)


@dataclass(frozen=True)
class Scores:
    """What the judge said of one look.

    Attributes:
        values: For each metric one number per prompt, NaN where it does not apply.
        features: What the judge sees in each picture, where that is kept.
    """

    values: dict[str, Float[np.ndarray, " p"]]
    features: Float[np.ndarray, "p k"] | None = None


@dataclass(frozen=True)
class Piece:
    """The result of one training and seed.

    Attributes:
        origin: See `Training.origin`.
        looks: Scores by the name of the look.
        seconds: Wall-clock time of training and of judging.
        threads: Threads that it ran with.
        logs: What was kept of the run's metrics, one number per training step.
    """

    origin: str
    looks: dict[str, Scores]
    seconds: dict[str, float]
    threads: int
    logs: dict[str, Float[np.ndarray, " s"]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {
            "about": np.array(
                json.dumps({"origin": self.origin, "seconds": self.seconds, "threads": self.threads})
            )
        }
        for look, scores in self.looks.items():
            for metric, values in scores.values.items():
                arrays[f"{look}/{metric}"] = values.astype(np.float32)
            if scores.features is not None:
                arrays[f"{look}/{_FEATURES}"] = scores.features.astype(np.float32)
        for name, column in self.logs.items():
            arrays[f"{_LOG}{name}"] = column.astype(np.float32)
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        write_atomically(path, packed.getvalue())

    @classmethod
    def load(cls, path: Path) -> Piece:
        """Read what `save` wrote.

        Raises:
            UserError: A damaged file.
        """
        try:
            data = read_arrays(path)
            about = json.loads(str(data.pop("about")))
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is not a result of `unifl reproduce` ({error}); delete it") from None
        logs = {
            key.removeprefix(_LOG): data.pop(key).astype(np.float64)
            for key in list(data)
            if key.startswith(_LOG)
        }
        looks: dict[str, dict[str, np.ndarray]] = {}
        for key, values in data.items():
            look, _, metric = key.rpartition("/")
            looks.setdefault(look, {})[metric] = values.astype(np.float64)
        found = {name: Scores(values, values.pop(_FEATURES, None)) for name, values in looks.items()}
        return cls(about["origin"], found, about["seconds"], about["threads"], logs)


def known(path: Path, origin: str) -> Piece | None:
    """The piece in a file, if it is there and everything that it depends on is as it was.

    Raises:
        UserError: The file is damaged, or was judged on another number of prompts: a quick look would replace it.
    """
    if not path.is_file():
        return None
    piece = Piece.load(path)
    there, wanted = (json.loads(text)["number"] for text in (piece.origin, origin))
    if there != wanted:
        raise UserError(
            f"{path} was judged on {there} prompts, not {wanted}; choose another folder with --out, or delete it"
        )
    return piece if piece.origin == origin else None


@lru_cache(maxsize=1)
def world_sha256() -> str:
    """A hash of all packaged weights and settings."""
    digest = hashlib.sha256()
    for path in sorted(ASSETS.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(ASSETS)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def by_name(trainings: tuple[Training, ...]) -> Mapping[str, Training]:
    """The trainings by name, in an order in which each comes after what it starts from."""
    found: dict[str, Training] = {}
    for training in trainings:
        for other in (training.start, training.run):
            assert other is None or other in found, f"{training.name} comes before {other}"
        found[training.name] = training
    return found
