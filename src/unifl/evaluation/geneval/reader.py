"""Pictures of a GenEval suite, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data.suites import Entry, Suite, Wanted
from unifl.errors import UserError, nearest
from unifl.evaluation.geneval.colors import ColorReader
from unifl.evaluation.geneval.rules import Thresholds, Verdict, judge_picture
from unifl.feedback.detectors import Detection, Detector

_OTHER_NAMES = {
    "computer keyboard": "keyboard",
    "computer mouse": "mouse",
    "tv remote": "remote",
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}
"""Classes of GenEval that detectors call otherwise. The first three names are COCO's; the others are Pascal VOC's and
stand in the lists of 80 labels that Mask2Former, RT-DETR and D-FINE have for transformers."""


class GenEval:
    """Judges pictures by what a detector finds on them.

    Args:
        suite: Prompts with what should be there.
        detector: Finds objects.
        colors: Reads their colours.
        thresholds: Numbers of the rules.

    Raises:
        UserError: A suite without `include` clauses, one prompt with two meanings, or a class or colour that detector
            or reader do not know; before anything is drawn.
    """

    def __init__(
        self, suite: Suite, detector: Detector, colors: ColorReader, thresholds: Thresholds | None = None
    ) -> None:
        self.detector, self.colors = detector, colors
        self.thresholds = thresholds or Thresholds()
        self.entries: dict[str, Entry] = {}
        for entry in suite.entries:
            if not entry.include:
                raise UserError(
                    f"the prompt {entry.prompt!r} says nothing of what a detector should find; take a suite in the "
                    "format of GenEval (evaluation_metadata.jsonl)"
                )
            known = self.entries.setdefault(entry.prompt, entry)
            if known != entry:
                raise UserError(f"the prompt {entry.prompt!r} is there with two meanings; keep one of them")
        for entry in self.entries.values():
            self._check(entry)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """1 for each picture on which everything is right, 0 otherwise."""
        return torch.tensor([float(one.correct) for one in self.verdicts(images, prompts)])

    def verdicts(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> list[Verdict]:
        """The same with reasons.

        Raises:
            UserError: A prompt that is not of the suite.
        """
        missing = [prompt for prompt in prompts if prompt not in self.entries]
        if missing:
            raise UserError(f"the prompt {missing[0]!r} is not in the suite that GenEval was given")
        entries = [self.entries[prompt] for prompt in prompts]
        wanted = [sorted({self._label(one.kind) for one in _clauses(entry)}) for entry in entries]
        found = self.detector(images, wanted)
        return [
            self._judged(image, detections, entry)
            for image, detections, entry in zip(images, found, entries, strict=True)
        ]

    def _judged(self, image: Tensor, detections: Sequence[Detection], entry: Entry) -> Verdict:
        back = {self._label(one.kind): one.kind for one in _clauses(entry)}
        named = [Detection(back[one.label], one.score, one.box, one.mask) for one in detections]
        return judge_picture(
            named, entry, lambda objects, kind: self.colors(image, objects, kind), self.thresholds
        )

    def _label(self, kind: str) -> str:
        """What the detector calls it."""
        labels = self.detector.labels
        return kind if labels is None or kind in labels else _OTHER_NAMES.get(kind, kind)

    def _check(self, entry: Entry) -> None:
        labels = self.detector.labels
        for one in _clauses(entry):
            if labels is not None and self._label(one.kind) not in labels:
                guess = nearest(one.kind, labels)
                hint = f"did you mean {guess!r}?" if guess else "take a detector of COCO's classes, or OWL"
                raise UserError(
                    f"the detector knows no {one.kind!r}, which {entry.prompt!r} asks for; {hint}"
                )
            if one.color is not None and one.color not in self.colors.names:
                raise UserError(
                    f"{entry.prompt!r} asks for {one.color!r}, and colours are read among "
                    f"{', '.join(sorted(self.colors.names))}; change the suite"
                )


def _clauses(entry: Entry) -> Sequence[Wanted]:
    return (*entry.include, *entry.exclude)
