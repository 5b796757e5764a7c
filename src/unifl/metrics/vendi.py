"""Vendi score: how many different samples a set amounts to.

    VS = exp(-sum l log l),   l the eigenvalues of K / n,   K_ij = cosine of features i and j

(Friedman and Dieng, arXiv 2210.02410, equation 1.) n equal samples give 1, n orthogonal ones n. The number depends on
n and on the features: report both, and compare sets of one size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Num
from torch import Tensor

from unifl.metrics.cmmd import unit_length


def vendi_score(features: Num[np.ndarray | Tensor, "n d"]) -> float:
    """Vendi score with the cosine kernel, in float64; between 1 and min(n, d).

    Raises:
        UserError: A feature of zeros, or values that are not finite.
    """
    x = unit_length(features)
    # X X^T and X^T X have the same eigenvalues above 0; the smaller one is taken apart
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    values = np.linalg.eigvalsh(gram / len(x))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))
