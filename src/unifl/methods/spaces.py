"""stub"""

from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from jaxtyping import Float
from torch import Tensor
from unifl.losses.denoising import masked_mse
from unifl.process.prediction import from_x0_eps


@dataclass(kw_only=True)
class LatentSpaceConfig:
    kind: Literal["latent"] = "latent"


@dataclass(kw_only=True)
class NCPConfig:
    kind: Literal["ncp"] = "ncp"


class LatentSpace:
    roles = ()
    earliest = 0.0

    def __init__(self, generator):
        self.generator = generator

    def truth(self, x0, eps, x_t, t, cond, key, *, mask=None):
        alpha, sigma = self.generator.process.weights(t)
        return from_x0_eps(x0, eps, alpha, sigma, self.generator.kind), mask

    def distance(self, prediction, truth):
        target, mask = truth
        error = prediction.raw - target
        return error.square().flatten(1).mean(1) if mask is None else masked_mse(error, mask)

    def count(self, count, copies, *, reference):
        pass


def make_space(config, generator):
    return LatentSpace(generator)
