"""Toy models and judges on which a step of a method takes milliseconds."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from unifl.data import Sample
from unifl.feedback import LayoutCritic, NetworkFeedback, StructureCritic, StyleCritic, as_feedback
from unifl.methods.base import MicroBatch
from unifl.models.load import FullTraining, make_generator
from unifl.models.lora import LoraTraining
from unifl.randomness import Key
from unifl.testing import FAMILIES, FLOW_FAMILIES, tiny_pipeline

SIDE = 32
PROMPTS = ["a red circle", "two cats", "a dog", "a small blue square"]


class Solo(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.Conv2d(3, 2, 8, stride=8)
        self.masks = nn.Conv2d(3, 16, 3, stride=2, padding=1)

    def forward(self, images):
        return self.cells(images), self.masks(images)


class Segmenter(nn.Module):
    def forward(self, images):
        return 5 * images


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return [torch.tanh(self.first(images)), images]


class RewardNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(16, 1)

    def forward(self, images, prompts):
        return self.head(self.body(images))[:, 0]


def redness(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@pytest.fixture
def rewards():
    # two of the four axes of the paper, as different functions of the pixels
    return {
        "color": as_feedback(redness, name="color"),
        "lighting": as_feedback(lambda images, prompts: images.mean((1, 2, 3)), name="lighting"),
    }


@pytest.fixture
def critics():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "structure": StructureCritic(Solo()),
            "layout": LayoutCritic(Segmenter()),
            "style": StyleCritic(Features()),
        }


@pytest.fixture
def detail():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return NetworkFeedback(RewardNetwork(), name="detail")


@pytest.fixture
def images():
    samples = []
    for index, prompt in enumerate(PROMPTS):
        mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        mask[0, 8 : 16 + 4 * index, 8:20] = True
        image = torch.full((3, SIDE, SIDE), 0.2)
        image[index % 3, mask[0]] = 0.9
        semantic = torch.where(mask[0], index % 3, 2)
        samples.append(Sample(image, prompt, mask, torch.tensor([index % 2]), semantic))
    return samples


@pytest.fixture
def sources(images):
    return {"images": images, "prompts": PROMPTS}


@pytest.fixture(scope="session")
def pipelines():
    return {family: tiny_pipeline(family) for family in FAMILIES + FLOW_FAMILIES}


@pytest.fixture
def make(pipelines):
    """A generator of its own for each call."""

    def build(family="sd15", *, full=False, **settings):
        train = FullTraining(**settings) if full else LoraTraining(rank=2, **settings)
        return make_generator(copy.deepcopy(pipelines[family]), train=train, roles=())

    return build


@pytest.fixture
def micro(sources):
    def build(rows=(0, 1), step=0):
        data = {name: [source[row] for row in rows] for name, source in sources.items()}
        return MicroBatch(Key(0, step, tuple(rows)), data)

    return build


@pytest.fixture
def run_step():
    """One training step as the loop makes it, without optimisers: the outputs by update."""

    def run(method, batch):
        outputs = {}
        for update in method.updates:
            outputs[update] = method.step(update, batch)
            sum(outputs[update].losses.values()).backward()
        return outputs

    return run


class Counted:
    """Samples through each network of a method, named as in `evaluations`."""

    def __init__(self, method):
        self.found = Counter()
        pipeline = method.generator.pipeline
        roles = method.generator.roles
        denoisers = dict.fromkeys(
            roles.module(method.generator.denoiser, role) for role in roles.names
        )  # full fine-tuning has copies
        self.handles = [denoiser.register_forward_hook(self._hook("unet")) for denoiser in denoisers]
        self.handles.append(pipeline.text_encoder.register_forward_hook(self._hook("text")))
        for name, module in (("encode", pipeline.vae.encoder), ("decode", pipeline.vae.decoder)):
            self.handles.append(module.register_forward_hook(self._hook(f"vae {name}")))
        for name, critic in getattr(method, "critics", {}).items():
            self.handles.append(critic.network.register_forward_hook(self._hook(f"critic/{name}")))
        if getattr(method, "discriminator", None) is not None:
            network = method.discriminator.network
            self.handles.append(network.register_forward_hook(self._hook("discriminator")))

    def _hook(self, name):
        def record(module, inputs, output):
            first = output[0] if isinstance(output, (tuple, list)) else getattr(output, "sample", output)
            first = getattr(output, "last_hidden_state", first)
            graded = bool(first.requires_grad)
            self.found[f"{name} forward+backward" if graded else _bare(name)] += len(first)

        return record

    def __enter__(self):
        return self.found

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def _bare(name):
    return name if name.startswith("vae") else f"{name} forward"


@pytest.fixture
def counted():
    return Counted
