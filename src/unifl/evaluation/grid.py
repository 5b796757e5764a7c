"""Grids of pictures with captions, as one PIL image: for previews during training, docs and the command line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unifl.errors import UserError

_PAPER, _INK, _MUTED = (255, 255, 255), (28, 30, 34), (105, 110, 120)
_GAP, _MARGIN = 6, 12


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """A picture in [0, 1] as an 8-bit RGB image; values outside are cut."""
    array = image.detach().float().cpu().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array), mode="RGB")


def picture_grid(
    images: Sequence[Sequence[Tensor | Image.Image | None]],
    *,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    scale: int = 2,
    caption_width: int = 220,
) -> Image.Image:
    """Pictures in rows and columns, enlarged by whole pixels, with titles above and captions at the left.

    Args:
        images: rows of pictures of one size, tensors ``(3, h, w)`` in [0, 1] or PIL images; None leaves a
            cell empty.
        columns: a title for each column, for example model names.
        rows: a caption for each row, for example prompts; wrapped.
        scale: how many times each pixel is repeated; 1 for large pictures.
        caption_width: pixels kept for the row captions, if there are any.
    """
    cells = [[to_pil(x) if isinstance(x, Tensor) else x for x in row] for row in images]
    cells = [[None if x is None else _enlarge(x, scale) for x in row] for row in cells]
    width, height = _cell_size(cells)
    num_columns = max(map(len, cells))
    for name, texts, count in (("column titles", columns, num_columns), ("row captions", rows, len(cells))):
        if texts and len(texts) != count:
            raise UserError(f"{len(texts)} {name} for {count} of them; give one each or none")
    font = ImageFont.load_default(size=14)
    left = _MARGIN + (caption_width if rows else 0)
    titles = [_wrap(text, font, width) for text in columns]
    line = 18
    top = _MARGIN + (max((len(t) for t in titles), default=0) * line + 4 if titles else 0)
    size = (
        left + num_columns * (width + _GAP) - _GAP + _MARGIN,
        top + len(cells) * (height + _GAP) - _GAP + _MARGIN,
    )
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    for j, lines in enumerate(titles):
        draw.multiline_text((left + j * (width + _GAP), _MARGIN), "\n".join(lines), _INK, font=font)
    for i, row in enumerate(cells):
        y = top + i * (height + _GAP)
        if rows:
            lines = _wrap(rows[i], font, caption_width - 2 * _MARGIN)[: max(1, height // line)]
            draw.multiline_text((_MARGIN, y), "\n".join(lines), _MUTED, font=font)
        for j, picture in enumerate(row):
            if picture is not None:
                page.paste(picture, (left + j * (width + _GAP), y))
    return page


def _enlarge(image: Image.Image, scale: int) -> Image.Image:
    if scale < 1:
        raise UserError(f"scale must be a whole number of at least 1, got {scale}")
    return image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _cell_size(cells: Sequence[Sequence[Image.Image | None]]) -> tuple[int, int]:
    sizes = {picture.size for row in cells for picture in row if picture is not None}
    if len(sizes) != 1:
        raise UserError(
            f"a grid needs pictures of one size, got {sorted(sizes) or 'none'}; resize them first"
        )
    return sizes.pop()


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(candidate) > width:
            lines.append(word)
        else:
            lines[-1] = candidate
    return lines
