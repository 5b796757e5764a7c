"""Whether a scorer is the one that it was before a restart."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from unifl.assembly.objects import is_dotted
from unifl.assembly.resolve import networks_of
from unifl.feedback import Feedback


def fingerprint(scorer: Feedback, asked: str) -> str:
    """The first 32 hexadecimal digits of a SHA-256 over what makes scores what they are.

    That is the kind of the scorer and what it declares, every weight of its networks, and, for a scorer of the user's
    own, the file in which it is written. What such a file imports or reads from elsewhere is not seen.

    Args:
        scorer: As it is served.
        asked: The name under which it was asked for.
    """
    found = hashlib.sha256()
    kind = type(scorer)
    declared = (kind.__module__, kind.__qualname__, scorer.space, sorted(scorer.needs), scorer.range)
    found.update(repr(declared).encode())
    for network in networks_of({"scorer": scorer}):
        for name, tensor in sorted(network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            # as bytes, because numpy has no bfloat16
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if is_dotted(asked):
        module, _, attribute = asked.partition(":")
        file = getattr(sys.modules.get(module), "__file__", None)
        found.update(attribute.encode() + (Path(file).read_bytes() if file else b""))
    elif not networks_of({"scorer": scorer}):
        found.update(asked.encode())
    return found.hexdigest()[:32]
