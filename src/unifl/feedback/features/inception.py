"""The Inception network of the Frechet inception distance, with the names of its published weights.

Inception-v3 (Szegedy et al., arXiv 1512.00567) as TensorFlow's model of 2015-12-05 has it, which FID was defined on. It
is not the one of later packages: average pools leave their padding out of the mean, the last block takes a maximum in
place of a mean, and there are 1008 classes. Weights of other packages give other distances.

Names and shapes are those of `pt_inception-2015-12-05-6726825d.pth` (github.com/mseitzer/pytorch-fid).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unifl.errors import UserError
from unifl.feedback.scorers.files import require_exact

SIDE, WIDTH, CLASSES = 299, 2048, 1008
_COUNTER = "num_batches_tracked"  # of batch norms: no weight, and not in every file
Size = int | tuple[int, int]


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inside: int, out: int, size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(nn.Module):
    """At 35 x 35."""

    def __init__(self, inside: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inside, 64, 1)
        self.branch5x5_1 = _Conv(inside, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inside, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean_pool(x))], 1)


class _BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inside, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inside, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _BlockC(nn.Module):
    """At 17 x 17; 7 x 7 in rows and columns."""

    def __init__(self, inside: int, inner: int) -> None:
        super().__init__()

        def row(wide: int, out: int) -> _Conv:
            return _Conv(wide, out, (1, 7), padding=(0, 3))

        def column(wide: int, out: int) -> _Conv:
            return _Conv(wide, out, (7, 1), padding=(3, 0))

        self.branch1x1 = _Conv(inside, 192, 1)
        self.branch7x7_1 = _Conv(inside, inner, 1)
        self.branch7x7_2 = row(inner, inner)
        self.branch7x7_3 = column(inner, 192)
        self.branch7x7dbl_1 = _Conv(inside, inner, 1)
        self.branch7x7dbl_2 = column(inner, inner)
        self.branch7x7dbl_3 = row(inner, inner)
        self.branch7x7dbl_4 = column(inner, inner)
        self.branch7x7dbl_5 = row(inner, 192)
        self.branch_pool = _Conv(inside, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean_pool(x))], 1)


class _BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(inside, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(inside, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class _BlockE(nn.Module):
    """At 8 x 8. The second of the two takes maxima: an oddity of these weights, and part of FID."""

    def __init__(self, inside: int, *, maxima: bool) -> None:
        super().__init__()
        self.maxima = maxima
        self.branch1x1 = _Conv(inside, 320, 1)
        self.branch3x3_1 = _Conv(inside, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(inside, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(inside, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maxima else _mean_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Pictures to the 2048 numbers before the classifier.

    Pictures are scaled to 299 px, whatever their shape, bilinearly and without antialiasing, as pytorch-fid does with
    tensors. That is part of the metric: another way of scaling gives other distances (Parmar et al., arXiv 2104.11222).
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(768, 128)
        self.Mixed_6c = _BlockC(768, 160)
        self.Mixed_6d = _BlockC(768, 160)
        self.Mixed_6e = _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, maxima=False)
        self.Mixed_7c = _BlockE(2048, maxima=True)
        self.fc = nn.Linear(WIDTH, CLASSES)  # in the file, and not asked

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Features of pictures in [0, 1]."""
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = 2 * images - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for block in self._blocks():
            x = block(x)
        return x.mean((2, 3))

    def _blocks(self) -> Sequence[nn.Module]:
        return [
            *(self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c),
            *(self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c),
        ]


def inception_from(state: Mapping[str, Tensor], name: str) -> Inception:
    """The network with weights.

    Args:
        state: Of the published file.
        name: Of that file, for messages.

    Raises:
        UserError: Weights that are missing, surplus or of other shapes.
    """
    network = Inception()
    own = {key: tensor for key, tensor in network.state_dict().items() if _COUNTER not in key}
    given = {key: tensor for key, tensor in state.items() if _COUNTER not in key}
    require_exact(name, sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys()))
    for key, tensor in given.items():
        if tensor.shape != own[key].shape:
            raise UserError(
                f"{name}: {key} has the shape {tuple(tensor.shape)}, and the Inception of FID has "
                f"{tuple(own[key].shape)}; use pt_inception-2015-12-05-6726825d.pth"
            )
    network.load_state_dict({key: tensor.float() for key, tensor in given.items()}, strict=False)
    return network
