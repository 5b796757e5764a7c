"""What scorers do with prompts before they spend time on them."""

from __future__ import annotations

import html
from collections.abc import Sequence

from unifl.errors import UserError

LONGEST = 20_000
"""Characters. The longest prompts of public suites have about 2,000, and no scorer reads more than a few pages."""


_STRAIGHT = str.maketrans(
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)


def tidied(prompt: str) -> str:
    """A prompt as the tokenizers of OpenAI's CLIP and of open_clip read it, which those of transformers do not.

    Escapes of HTML become what they stand for, curly quotes straight, and runs of blanks one. The originals also mend
    text that was decoded wrongly, wide letters and ligatures (by the package ftfy); here those stay as they are.
    """
    return " ".join(html.unescape(html.unescape(prompt)).translate(_STRAIGHT).split())


def require_prompts(prompts: Sequence[str], pictures: int) -> None:
    """Refuse prompts that no scorer can use.

    Args:
        prompts: One per picture.
        pictures: How many there are.

    Raises:
        UserError: Another number than there are pictures, or one that would keep a tokenizer busy for minutes.
    """
    if len(prompts) != pictures:
        raise UserError(
            f"there are {pictures} pictures and {len(prompts)} prompts; give one for each picture"
        )
    for number, prompt in enumerate(prompts):
        if len(prompt) > LONGEST:
            raise UserError(
                f"prompt {number} has {len(prompt):,} characters ({prompt[:40]!r}...), and scorers take at most "
                f"{LONGEST:,}; shorten it, or look at the file that it comes from"
            )
