"""Personalised preference conditioning (PPD): preference optimisation that is told who chose."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from unifl.data.encoded import EncodedSample
from unifl.data.pairs import EncodedPair, Pair
from unifl.data.users import UserEmbeddings
from unifl.errors import UserError
from unifl.methods.base import MicroBatch
from unifl.methods.objectives import DPO
from unifl.methods.pair_rows import PairRows
from unifl.methods.preference import Preference, PreferenceConfig
from unifl.models import UserTraining
from unifl.models.load import make_generator
from unifl.randomness import Key

USERS = UserEmbeddings({"ada": torch.tensor([1.0, 0.0]), "ben": torch.tensor([0.0, 1.0])})


@pytest.fixture
def pairs(images):
    """Two pairs that ada and ben judge in opposite ways: hers, then his."""
    hers = [Pair(one.prompt, one.image, one.image.flip(0), user="ada") for one in images[:2]]
    return [*hers, *(replace(pair, win=pair.lose, lose=pair.win, user="ben") for pair in hers)]


@pytest.fixture
def generator(pipelines):
    return make_generator(
        copy.deepcopy(pipelines["sd15"]), train=UserTraining(embedding_dim=2), roles=("reference",)
    )


def method_of(generator, source, users=USERS, *, beta=500.0, **settings):
    config = PreferenceConfig(objective=DPO(beta=beta), **settings)
    return Preference(generator, config, sources={"pairs": source}, users=users)


def batch_of(rows, step=0):
    return MicroBatch(Key(0, step, tuple(range(len(rows)))), {"pairs": list(rows)})


def stirred(generator):
    """An adapter that has learnt something: its values begin at zero."""
    with torch.no_grad():
        for index, parameter in enumerate(generator.trainable_parameters().values()):
            shift = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(0.3 * shift)


def lead(method, rows, user):
    """How much further losers are from the truth than winners, as the model sees them for a user."""
    rows, found = [replace(row, user=user) for row in rows], []
    with torch.no_grad():
        for step in range(1000, 1010):
            metrics = method.step("student", batch_of(rows, step)).metrics
            found.append(float(metrics["error/loser"] - metrics["error/winner"]))
    return sum(found) / len(found)


def test_winners_of_each_user_gain_for_that_user(generator):
    """One likes light pictures, the other dark ones; latents of the tiny autoencoder would hardly differ."""
    light = torch.ones(generator.latent_shape)
    prompts, sides = ("a cat", "a dog"), {"ada": (light, -light), "ben": (-light, light)}

    def kept(prompt, latents):
        return EncodedSample(prompt, latents, torch.zeros_like(latents))

    rows = {
        user: [EncodedPair(prompt, kept(prompt, win), kept(prompt, lose), user=user) for prompt in prompts]
        for user, (win, lose) in sides.items()
    }
    users = UserEmbeddings({"ada": torch.tensor([2.0, -2.0]), "ben": torch.tensor([-2.0, 2.0])})
    both = [*rows["ada"], *rows["ben"]] * 2
    method = method_of(generator, both, users, beta=20.0)
    start = {user: lead(method, some, user) for user, some in rows.items()}
    # the student begins as the model, whoever asks
    assert lead(method, rows["ada"], "ben") == pytest.approx(start["ada"], abs=1e-6)
    optimizer = torch.optim.Adam(method.parameters["student"], lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        sum(method.step("student", batch_of(both, step)).losses.values()).backward()
        optimizer.step()
    for user, other in (("ada", "ben"), ("ben", "ada")):
        assert lead(method, rows[user], user) > start[user] + 0.05
        assert lead(method, rows[user], other) < start[user] - 0.05


def test_winner_and_loser_are_told_of_the_same_user(generator, pairs):
    rows, key = [pairs[0], pairs[2], pairs[1]], Key(0, 3, (4, 5, 6))
    cond = PairRows(generator, rows, key).cond(copies=2, users=USERS)
    expected = torch.stack([USERS["ada"], USERS["ben"], USERS["ada"]])
    torch.testing.assert_close(cond.user, torch.cat([expected, expected]))


def test_users_are_dropped_pair_by_pair(generator, pairs):
    rows, key = [pairs[0]] * 64, Key(0, 3, tuple(range(64)))
    cond = PairRows(generator, rows, key).cond(copies=2, users=USERS, user_dropout=0.5)
    win, lose = cond.user.chunk(2)
    torch.testing.assert_close(win, lose)
    gone = (win == 0).all(dim=(1, 2))
    assert 16 < int(gone.sum()) < 48
    torch.testing.assert_close(win[~gone], USERS["ada"].expand(int((~gone).sum()), -1, -1))


def test_a_dropped_user_is_a_user_of_zeros(generator, pairs):
    stirred(generator)
    nobody = UserEmbeddings({"ada": torch.zeros(2), "ben": torch.zeros(2)})

    def loss(users, dropout):
        return float(
            method_of(generator, pairs, users, user_dropout=dropout)
            .step("student", batch_of(pairs))
            .losses["preference"]
            .detach()
        )

    assert loss(USERS, 1.0) == loss(nobody, 0.0) != loss(USERS, 0.0)


def test_the_reference_takes_no_notice_of_users(generator, pairs):
    stirred(generator)
    method, cond = method_of(generator, pairs), generator.encode_prompts(["a cat", "a cat"])
    x_t = torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    told = replace(cond, user=USERS.batch(["ada", "ben"]))
    said = {
        role: [generator.denoise(role, x_t, torch.full((2,), 0.5), one).raw for one in (cond, told)]
        for role in ("reference", "student")
    }
    assert torch.equal(*said["reference"]) and not torch.allclose(*said["student"])
    found = [
        method.step("student", batch_of([replace(row, user=user) for row in pairs[:2]])).metrics
        for user in ("ada", "ben")
    ]
    of_the_reference = [float(one["error/winner"] - one["error/winner over reference"]) for one in found]
    assert of_the_reference[0] == pytest.approx(of_the_reference[1], abs=1e-6)
    assert float(found[0]["error/winner"]) != pytest.approx(float(found[1]["error/winner"]), abs=1e-6)


def test_encoded_pairs_have_users_too(generator, pairs):
    stirred(generator)

    def encoded(row):
        sides = {}
        for side in ("win", "lose"):
            mean, std = generator.posterior(getattr(row, side)[None])
            sides[side] = EncodedSample(row.prompt, mean[0], std[0])
        return EncodedPair(row.prompt, **sides, user=row.user)

    rows = [encoded(row) for row in pairs]

    def loss(rows):
        return float(method_of(generator, rows).step("student", batch_of(rows)).losses["preference"].detach())

    assert loss(rows) == pytest.approx(loss(pairs), abs=1e-3)
    key = Key(0, 0, (0, 1, 2, 3))
    told = [PairRows(generator, some, key).cond(copies=2, users=USERS).user for some in (rows, pairs)]
    assert torch.equal(*told)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (None, r"the pair of '(.+)' does not say who chose; leave such pairs out"),
        ("eve", r"the pair of '(.+)': there is no embedding of user 'eve' among 2"),
        ("bem", r"the pair of '(.+)': .*did you mean 'ben'"),
    ],
)
def test_a_pair_whose_user_is_not_known_is_told_by_its_prompt(generator, pairs, user, message):
    rows = [pairs[0], replace(pairs[1], prompt="a tall tower", user=user)]
    with pytest.raises(UserError, match=message.replace("(.+)", "a tall tower")):
        method_of(generator, rows).step("student", batch_of(rows))


class Told(list):
    """Pairs that know their users, and count how many of them were read."""

    def __init__(self, rows, users):
        super().__init__(rows)
        self.users, self.read = users, set()

    def __getitem__(self, row):
        self.read.add(row)
        return super().__getitem__(row)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (["ada", None], "the source 'pairs' has pairs that do not say who chose"),
        (["ada", "eve"], r"1 of 2 users of the source 'pairs' have no embedding \('eve'\)"),
        (["ada", *"abcd"], r"4 of 5 users .* have no embedding \('a', 'b', 'c', \.\.\.\)"),
    ],
)
def test_a_source_that_knows_its_users_is_checked_before_training(generator, pairs, users, message):
    source = Told(pairs, users)
    with pytest.raises(UserError, match=message):
        method_of(generator, source)
    assert source.read <= {0}  # the first row, whose size is looked at in any case


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"users": None}, r"give users=UserEmbeddings\.from_path"),
        (
            {"users": UserEmbeddings({"ada": torch.ones(3), "ben": torch.ones(3)})},
            "3 numbers and the adapter takes 2",
        ),
        ({"user_dropout": 1.5}, r"user_dropout is 1\.5; it must be in \[0, 1\]"),
    ],
)
def test_users_that_do_not_fit_are_told_before_training(generator, pairs, settings, message):
    with pytest.raises(UserError, match=message):
        method_of(generator, pairs, **settings)


def test_a_model_without_a_user_adapter_takes_no_users(make, pairs):
    with pytest.raises(UserError, match="no other model reads them"):
        method_of(make(), pairs)
    with pytest.raises(UserError, match="user_dropout is for a model with a user adapter; set it to 0"):
        method_of(make(), pairs, users=None, user_dropout=0.1)
