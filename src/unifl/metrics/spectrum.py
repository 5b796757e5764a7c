"""High-frequency noise: which share of a picture's energy lies at fine detail.

A model that climbs a reward too far learns to draw high-frequency noise that the reward likes and people do not
(RG-LCD, arXiv 2403.11027, which meets it with a proxy reward); the share of energy above a cut shows it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_NO_CONTRAST = 1e-12  # mean square deviation; 1e-6 of the range is far below one step of eight bits


def high_frequency_share(images: Float[Tensor, "n 3 h w"], cut: float = 0.5) -> Float64[Tensor, " n"]:
    r"""Share of the energy of each picture, without its mean, at frequencies above a cut.

        F_c = FFT2(x_c),   r = 2 sqrt(f_y^2 + f_x^2)      f in cycles per pixel, so r = 1 is Nyquist along an axis
        share = sum_{c, r > cut} |F_c|^2 / sum_{c, r > 0} |F_c|^2

    The power spectrum is summed over rings and over the three channels, so that coloured noise counts as grey noise
    does. Pictures are taken as periodic and no window is applied: a jump between opposite edges counts as detail, in
    both pictures of a comparison. Corners of the spectrum (r up to sqrt 2) are above every cut; of white noise the
    expected share is 1 - pi cut^2 / 4.

    Args:
        images: In [0, 1].
        cut: As a fraction of Nyquist, above 0 and at most 1.

    Returns:
        In [0, 1]; 0 for a picture of one colour.
    """
    pixels = images.double()
    pixels = pixels - pixels.mean((2, 3), keepdim=True)
    energy = torch.fft.fft2(pixels).abs().square().sum(1)
    height, width = images.shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device=images.device)
    columns = torch.fft.fftfreq(width, dtype=torch.float64, device=images.device)
    radius = 2 * (rows[:, None].square() + columns.square()).sqrt()
    total, high = energy.sum((1, 2)), (energy * (radius > cut)).sum((1, 2))
    flat = (
        pixels.square().mean((1, 2, 3)) < _NO_CONTRAST
    )  # what is left there is rounding, at every frequency
    return torch.where(flat, 0.0, high / total.clamp(min=torch.finfo(torch.float64).tiny))
