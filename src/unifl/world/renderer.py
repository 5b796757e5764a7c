"""Scenes to pictures, instance masks, semantic maps and depth order, by signed distance functions in torch.

Shapes are signed distances in pixels (negative inside), so that edges are antialiased, softness is one
number, and a batch of scenes is a few tensor operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unifl.world.scenes import BACKGROUNDS, COLORS, QUALITIES, SHAPES, STYLES, Scene

SIZE = 64
_MAX_OBJECTS = 3

_RGB = torch.tensor(
    [
        [0.90, 0.16, 0.16],  # red
        [0.95, 0.80, 0.12],  # yellow
        [0.16, 0.70, 0.24],  # green
        [0.10, 0.78, 0.82],  # cyan
        [0.16, 0.32, 0.90],  # blue
        [0.66, 0.20, 0.82],  # purple
    ]
)
PALETTE: dict[str, tuple[float, float, float]] = {
    name: (float(r), float(g), float(b)) for name, (r, g, b) in zip(COLORS, _RGB.tolist(), strict=True)
}
"""Red, green and blue of each colour, in full colour quality."""
_BACKDROP = torch.tensor([[0.93, 0.93, 0.91], [0.56, 0.57, 0.60], [0.13, 0.14, 0.19]])


@dataclass(frozen=True)
class Rendered:
    """A batch of pictures with what is true of them.

    Attributes:
        images: RGB in [0, 1].
        masks: visible part of each object, in the order of the scene's objects; empty rows are all false.
        labels: index into SHAPES, -1 where there is no object.
        semantic: 0 for background, 1 + index into SHAPES elsewhere.
        depth: 0 for background, else 1 + drawing order (larger is nearer).
    """

    images: Float[Tensor, "b 3 h w"]
    masks: Bool[Tensor, "b n h w"]
    labels: Int[Tensor, "b n"]
    semantic: Int[Tensor, "b h w"]
    depth: Int[Tensor, "b h w"]


def render(scenes: Sequence[Scene], size: int = SIZE) -> Rendered:
    """Draw scenes at `size` x `size` pixels."""
    p = _parameters(scenes)
    scale = size / SIZE
    grid = (torch.arange(size, dtype=torch.float32) + 0.5) / scale
    yy, xx = torch.meshgrid(grid, grid, indexing="ij")  # in units of a 64 px picture
    images = _background(p, xx, yy)
    distance = _distances(p, xx, yy)  # (b, n, h, w)
    depth = torch.zeros(len(scenes), size, size, dtype=torch.long)
    for i in range(_MAX_OBJECTS):
        images = _draw(images, p, i, distance[:, i], xx, yy)
        depth = torch.where(distance[:, i] < 0, i + 1, depth)
    order = torch.arange(1, _MAX_OBJECTS + 1)[None, :, None, None]
    masks = depth[:, None] == order
    semantic = (masks * (p["shape"] + 1)[:, :, None, None]).sum(1)
    return Rendered(images.clamp(0, 1), masks, p["shape"], semantic, depth)


def _parameters(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Scene fields as tensors; absent objects have shape -1 and lie far outside."""
    shape = torch.full((len(scenes), _MAX_OBJECTS), -1)
    color = torch.zeros(len(scenes), _MAX_OBJECTS, dtype=torch.long)
    pose = torch.full((len(scenes), _MAX_OBJECTS, 4), -10.0)  # x, y, radius, angle
    for b, scene in enumerate(scenes):
        for i, placed in enumerate(scene.objects):
            shape[b, i] = SHAPES.index(placed.thing.shape)
            color[b, i] = COLORS.index(placed.thing.color)
            pose[b, i] = torch.tensor([placed.x * SIZE, placed.y * SIZE, placed.radius * SIZE, placed.angle])
    quality = torch.tensor([s.quality for s in scenes])
    return {
        "shape": shape,
        "rgb": _saturate(_RGB[color], quality[:, QUALITIES.index("color")]),
        "pose": pose,
        "style": torch.tensor([STYLES.index(s.description.style) for s in scenes]),
        "backdrop": _BACKDROP[[BACKGROUNDS.index(s.description.background) for s in scenes]],
        "lighting": quality[:, QUALITIES.index("lighting")],
        "detail": quality[:, QUALITIES.index("detail")],
        "light": torch.tensor([s.light for s in scenes]),
    }


def _saturate(rgb: Float[Tensor, "b n 3"], quality: Float[Tensor, " b"]) -> Float[Tensor, "b n 3"]:
    """Colour quality is saturation: dull at 0, pure at 1; every hue stays readable."""
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True) * 0.6 + 0.2
    keep = (0.38 + 0.62 * quality)[:, None, None]
    return grey + keep * (rgb - grey)


def _column(x: Tensor) -> Tensor:
    return x[:, None, None]


def _background(p: dict[str, Tensor], xx: Tensor, yy: Tensor) -> Float[Tensor, "b 3 h w"]:
    """A backdrop whose gradient of light is stronger where lighting quality is higher."""
    ramp = (_column(p["light"].cos()) * (xx - 32) + _column(p["light"].sin()) * (yy - 32)) / 32
    shade = 1 + 0.16 * _column(p["lighting"]) * ramp
    return p["backdrop"][:, :, None, None] * shade[:, None]


def _distances(p: dict[str, Tensor], xx: Tensor, yy: Tensor) -> Float[Tensor, "b n h w"]:
    x0, y0, radius, angle = (v[..., None, None] for v in p["pose"].unbind(-1))
    dx, dy = xx - x0, yy - y0
    u = dx * angle.cos() + dy * angle.sin()
    v = -dx * angle.sin() + dy * angle.cos()
    r = radius.clamp(min=1.0)
    out = torch.full(torch.broadcast_shapes(u.shape, v.shape), 1e3)
    for index, sdf in enumerate((_circle, _square, _triangle, _star, _cross)):
        chosen = p["shape"] == index
        if chosen.any():
            out[chosen] = sdf(u[chosen], v[chosen], r[chosen])
    return out


def _circle(u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.95 * r


def _box(u: Tensor, v: Tensor, half_u: Tensor, half_v: Tensor) -> Tensor:
    qu, qv = u.abs() - half_u, v.abs() - half_v
    outside = torch.hypot(qu.clamp(min=0), qv.clamp(min=0))
    return outside + torch.maximum(qu, qv).clamp(max=0)


def _square(u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    return _box(u, v, 0.82 * r, 0.82 * r)


def _triangle(u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Upright and isosceles: the largest of its three half-plane distances."""
    sides = 0.8944 * u.abs() - 0.4472 * (v + 1.05 * r)
    return torch.maximum(sides, v - 0.8 * r)


def _star(u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Five points; the distance to the nearest edge line in a wedge of 36 degrees."""
    theta = torch.atan2(u, -v)
    wedge = math.pi / 5
    folded = (torch.remainder(theta + wedge, 2 * wedge) - wedge).abs()
    rho = torch.hypot(u, v)
    px, py = rho * folded.sin(), rho * folded.cos()
    tip, notch = 1.12 * r, 0.50 * r
    ex, ey = notch * math.sin(wedge), notch * math.cos(wedge) - tip
    length = torch.hypot(ex, ey)
    return (px * -ey + (py - tip) * ex) / length


def _cross(u: Tensor, v: Tensor, r: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.98 * r, 0.36 * r), _box(u, v, 0.36 * r, 0.98 * r))


def _draw(images: Tensor, p: dict[str, Tensor], i: int, d: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """Shadow, then fill with its style, shading and rim, over what is there."""
    detail, lighting = _column(p["detail"]), _column(p["lighting"])
    softness = 0.9 + 3.4 * (1 - detail)  # width of an edge, px
    coverage = (0.5 - d / softness).clamp(0, 1)
    shift = 3.0
    shadow_d = _shadow_distance(p, i, xx, yy, shift)
    shadow = (0.5 - shadow_d / 4.0).clamp(0, 1) * 0.55 * lighting
    images = images * (1 - shadow)[:, None]
    fill = _fill(images, p, i, d, xx, yy)
    x0, y0, radius = (p["pose"][:, i, k][:, None, None] for k in range(3))
    towards = (_column(p["light"].cos()) * (xx - x0) + _column(p["light"].sin()) * (yy - y0)) / radius.abs()
    shade = 1 + 0.42 * lighting * towards.clamp(-1, 1)
    rim = 1 - 0.55 * detail * torch.exp(-((d + 0.9) ** 2) / 0.8)
    painted = fill * (shade * rim)[:, None]
    return torch.lerp(images, painted, coverage[:, None])


def _shadow_distance(p: dict[str, Tensor], i: int, xx: Tensor, yy: Tensor, shift: float) -> Tensor:
    """Distance to a disc behind the object, away from the light: soft shadows hide the outline anyway."""
    x0, y0, radius = (p["pose"][:, i, k][:, None, None] for k in range(3))
    dx = xx - (x0 - shift * _column(p["light"].cos()))
    dy = yy - (y0 - shift * _column(p["light"].sin()))
    distance = torch.hypot(dx, dy) - 0.8 * radius
    return torch.where(radius > 0, distance, torch.full_like(distance, 1e3))


def _fill(images: Tensor, p: dict[str, Tensor], i: int, d: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """The colour of each pixel of an object in its style."""
    rgb = p["rgb"][:, i, :, None, None]
    pale = torch.lerp(rgb, torch.ones_like(rgb), 0.62)
    contrast = 0.45 + 0.55 * _column(p["detail"])
    dx, dy = xx - p["pose"][:, i, 0, None, None], yy - p["pose"][:, i, 1, None, None]
    stripes = (torch.sin((dx + dy) * (2 * math.pi / 7.0)) * 1.6).clamp(-1, 1) * 0.5 + 0.5
    dots = ((-torch.cos(dx * (2 * math.pi / 5.5)) - torch.cos(dy * (2 * math.pi / 5.5)) - 0.7) * 2.0).clamp(
        0, 1
    )
    inside = ((-d - 2.6) / 1.2).clamp(0, 1)
    amount = torch.stack([torch.zeros_like(d), inside, stripes, dots], 1)
    amount = amount.gather(1, p["style"][:, None, None, None].expand(-1, 1, *d.shape[1:]))
    is_outline = (p["style"] == STYLES.index("outline"))[:, None, None, None]
    other = torch.where(is_outline, images, pale.expand_as(images))
    return torch.lerp(rgb.expand_as(images), other, amount * contrast[:, None].clamp(max=1))
