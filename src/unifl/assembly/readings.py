"""Names of scorers, detectors and features on a command line become what an evaluation measures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from unifl.assembly import resolve
from unifl.assembly.fingerprint import fingerprint
from unifl.assembly.on_pictures import on_pictures
from unifl.assembly.part import Part
from unifl.data.suites import Suite
from unifl.errors import UserError
from unifl.evaluation.geneval import ClipColors, ColorReader, GenEval, PaletteColors, Thresholds
from unifl.evaluation.readings import Readings
from unifl.feedback import Feedback, NetworkFeedback
from unifl.feedback.detectors import open_detector
from unifl.feedback.features import PictureFeatures, open_features
from unifl.feedback.scorers import open_scorer
from unifl.feedback.scorers.clip import ClipScorer

COLOR_MODEL = "openai/clip-vit-large-patch14"
WORLD_PALETTE = "world:palette"


@dataclass(frozen=True, kw_only=True)
class ReadingsRequest:
    """What is measured in place of a judge.

    Attributes:
        scorers: By the names that scores get, see `resolve.named`.
        detector: For a suite of GenEval: hub name or folder.
        color_model: CLIP that reads colours, or "world:palette".
        thresholds: Numbers of GenEval's rules.
        features: Name of an extractor for diversity, or NAME=PATH.
    """

    scorers: Mapping[str, Part] = field(default_factory=dict)
    detector: str | None = None
    color_model: str = COLOR_MODEL
    thresholds: Thresholds = field(default_factory=Thresholds)
    features: str | None = None

    @property
    def asked(self) -> bool:
        """Whether there is something to measure."""
        return bool(self.scorers) or self.detector is not None

    @property
    def name(self) -> str:
        """For result files: what is measured, and how."""
        shown = [_scorer_name(label, part) for label, part in self.scorers.items()]
        if self.detector is not None:
            t = self.thresholds
            shown.append(
                f"geneval({self.detector}, {self.color_model}, {t.score:g}, {t.counting:g}, {t.position:g})"
            )
        return " + ".join(shown) + (f" on {self.features}" if self.features else "")

    def open(self, suite: Suite, *, device: torch.device | str) -> Readings:
        """Load all of it.

        Raises:
            UserError: Something that cannot be opened, or a suite that a detector cannot judge.
        """
        scorers = {
            label: on_pictures(resolve.feedback(part, name=label, device=device), device=device)
            for label, part in self.scorers.items()
        }
        geneval = None
        if self.detector is not None:
            detector = open_detector(self.detector)
            detector.to(device)  # type: ignore[attr-defined]
            geneval = GenEval(suite, detector, self._colors(device), self.thresholds)
        features = None if self.features is None else named_features(self.features).to(device)
        return Readings(
            scorers,
            geneval=geneval,
            features=features,
            device=device,
            fingerprint=self._fingerprint(scorers, geneval, features),
        )

    def _fingerprint(
        self, scorers: Mapping[str, Feedback], geneval: GenEval | None, features: PictureFeatures | None
    ) -> str:
        """What lies behind all names, and what GenEval asks of each prompt."""
        prints = [fingerprint(scorer, self.scorers[label]) for label, scorer in scorers.items()]
        if geneval is not None:
            prints += [
                fingerprint(geneval.detector, str(self.detector)),
                fingerprint(geneval.colors, self.color_model),
                repr([(entry.include, entry.exclude) for entry in geneval.entries.values()]),
            ]
        if features is not None:
            prints.append(features.sha256())
        return hashlib.sha256("\n".join(prints).encode()).hexdigest()[:32]

    def _colors(self, device: torch.device | str) -> ColorReader:
        if self.color_model == WORLD_PALETTE:
            from unifl.world.renderer import PALETTE

            return PaletteColors(PALETTE)
        opened = open_scorer("clipscore", weights=self.color_model, base=self.color_model)
        assert isinstance(opened, NetworkFeedback) and isinstance(opened.network, ClipScorer)
        opened.network.prefix = ""  # that of CLIPScore; sentences about colours are whole
        return ClipColors(opened.network.to(device))


def _scorer_name(label: str, part: Part) -> str:
    """A label, with what it stands for where it does not say so itself, and where its files are."""
    name = label if label == part.path.rpartition(":")[2] else f"{label}={part.path}"
    files = ", ".join(f"{key} {place}" for key, place in part.kwargs.items())
    return f"{name} ({files})" if files else name


def named_features(text: str) -> PictureFeatures:
    """`dinov2`, or `dinov2=PATH` where its weights are.

    Raises:
        UserError: No such extractor, or weights that do not fit.
    """
    kind, equals, place = text.partition("=")
    if equals and not place:
        raise UserError(f"{text!r} names no weights; write {kind}=PATH, or {kind} alone")
    return open_features(kind, weights=place or None)
