"""What pictures are asked for: everything that decides them, the files that they become, and whose folder it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unifl import config as configs
from unifl.assembly.model_hash import process_sha256, weights_sha256
from unifl.assembly.open_model import Opened
from unifl.data.store import METADATA, SETTINGS
from unifl.data.suites import require_text
from unifl.disk import write_atomically
from unifl.errors import UserError
from unifl.metrics.result import prompts_sha256
from unifl.models.user import UserRoles

GRID = "grid.png"
_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Pictures of a model, by the number of their prompt and their turn.

    Attributes:
        model: See `open_model`.
        prompts: Texts.
        seed: Of the first turn; each further turn has the next one.
        count: Turns, that is pictures per prompt.
        user: For whom, with a model that has a user adapter: id and embedding. None draws for somebody unknown.

    Raises:
        UserError: No prompts or one that is no text, a count below 1, or a user for a model that has no user adapter.
    """

    model: Opened
    prompts: Sequence[str]
    seed: int = 0
    count: int = 1
    user: tuple[str, Float[Tensor, "v e"]] | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not self.prompts:
            raise UserError("nothing to draw; give at least one prompt and a count of at least 1")
        for number, prompt in enumerate(self.prompts, start=1):
            require_text(prompt, f"prompt {number}")
        if self.user is not None and not isinstance(self.model.generator.roles, UserRoles):
            raise UserError(
                f"{self.model.name} has no user adapter, so it draws for nobody in particular; name no user"
            )

    def __len__(self) -> int:
        """Number of pictures."""
        return self.count * len(self.prompts)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the pictures, as JSON holds it; seconds for a large model, whose weights are hashed.

        What moves them by rounding alone (batch size, device, versions) is not in it.
        """
        generator = self.model.generator
        types = sorted({str(one.dtype) for net in generator.modules().values() for one in net.parameters()})
        found = {
            "format": _FORMAT,
            "model": self.model.name,
            "weights_sha256": weights_sha256(generator),
            "process_sha256": process_sha256(generator),
            "precision": [*types, generator.mixed_precision],
            "resolution": generator.image_size,
            **configs.plain(self.model.sampling),
            "num_prompts": len(self.prompts),
            "prompts_sha256": prompts_sha256(self.prompts),
            "seed": self.seed,
            "count": self.count,
            "user": None if self.user is None else self.user[0],
            "embedding_sha256": None if self.user is None else _hash(self.user[1]),
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    @property
    def digest(self) -> str:
        """A short name for the settings, such as a folder may have."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    def file_name(self, number: int, turn: int) -> str:
        """Of one picture."""
        return f"{number:05d}_{self.seed + turn}.png"

    @property
    def rows(self) -> list[dict[str, object]]:
        """What `metadata.jsonl` says of each picture, in order of prompts, then seeds."""
        how = self.model.sampling
        return [
            {
                "file_name": self.file_name(number, turn),
                "prompt": prompt,
                "index": number,
                "seed": self.seed + turn,
                "model": self.model.name,
                "steps": how.num_steps,
                "guidance": how.guidance,
                "spacing": how.spacing,
                "negative_prompt": how.negative_prompt,
                **({} if self.user is None else {"user": self.user[0]}),
            }
            for number, prompt in enumerate(self.prompts)
            for turn in range(self.count)
        ]

    def check(self, folder: Path) -> None:
        """Look whether a folder may get these pictures.

        Raises:
            UserError: It holds pictures that were asked for otherwise, or that nothing is known of.
        """
        path = folder / SETTINGS
        if path.is_file():
            differ = _differences(_read(path), self.settings)
            if differ:
                raise UserError(
                    f"{folder} holds pictures that were drawn otherwise ({'; '.join(differ)}); take another folder, or "
                    "remove this one"
                )
            return
        own = (METADATA, GRID, *(str(row["file_name"]) for row in self.rows))
        there = next((name for name in own if (folder / name).exists()), None)
        if there is not None:
            raise UserError(
                f"{folder} holds {there}, and no {SETTINGS} says how it was drawn; take another folder, or remove this "
                "one"
            )

    def sign(self, folder: Path) -> None:
        """Say in a folder what its pictures are."""
        text = json.dumps(self.settings, indent=1, ensure_ascii=False) + "\n"
        write_atomically(folder / SETTINGS, text.encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); take another folder, or remove this one") from None
    return found if isinstance(found, dict) else {}


def _differences(known: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """What is not the same, with both values where these tell something."""
    found = []
    for key in dict.fromkeys((*asked, *known)):
        before, now = known.get(key), asked.get(key)
        if before != now:
            hashed = key.endswith("_sha256")
            found.append(
                f"other {key.removesuffix('_sha256')}" if hashed else f"{key} {before} and not {now}"
            )
    return found


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().cpu().numpy().tobytes()).hexdigest()
