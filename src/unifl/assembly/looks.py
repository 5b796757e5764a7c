"""Those who look at a model while it trains: the judge of `validation`, and the monitor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unifl.assembly.monitor import Monitor
from unifl.assembly.validation import Validation
from unifl.training.checkpoint import checkpoints
from unifl.training.logging import StepLines
from unifl.training.loop import StepResult


@dataclass(frozen=True)
class Looks:
    """What looks at the model beside the training; each writes lines of its own into `metrics.jsonl`.

    Attributes:
        validation: A judge; None if the recipe asks for none.
        monitor: None if the recipe asks for none.
    """

    validation: Validation | None
    monitor: Monitor | None

    def begin(self, folder: Path) -> None:
        """Look before the first step that is made now, on the main process, once the run has its checkpoint.

        Args:
            folder: The run folder; checkpoints beyond the one that is gone on from have left it.
        """
        step, log = max((step for step, _ in checkpoints(folder)), default=0), folder / "metrics.jsonl"
        if step == 0:
            log.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        else:
            StepLines(log, step=step).close()  # without what lies beyond, or was cut off as the process died
        for one in self._all():
            one.begin(step)

    def after(self, result: StepResult) -> None:
        """Look after a training step."""
        for one in self._all():
            one.after(result.step)

    def _all(self) -> list[Validation | Monitor]:
        return [one for one in (self.validation, self.monitor) if one is not None]
