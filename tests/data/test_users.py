from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from unifl.data.users import UserEmbeddings, drop_users, embed_users
from unifl.errors import UserError
from unifl.models import Conditioning
from unifl.randomness import Key

ADA, BEN = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])


@dataclass
class Choice:
    win: torch.Tensor
    lose: torch.Tensor
    user: str | None = None


def picture(level, size=4):
    return torch.full((3, size, size), level)


def brightness(images):
    """Mean, and its square."""
    mean = images.mean((1, 2, 3))
    return torch.stack([mean, mean.square()], dim=1)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "folder"])
def test_the_same_embeddings_from_every_format(kind, tmp_path):
    if kind == "safetensors":
        path = UserEmbeddings({"ada": ADA, "ben": BEN}).save(tmp_path / "users.safetensors")
    elif kind == "npz":
        path = tmp_path / "users.npz"
        np.savez(path, ada=ADA.double().numpy(), ben=BEN.numpy())
    else:
        path = tmp_path
        for name, tensor in (("ada", ADA), ("ben", BEN)):
            np.save(tmp_path / f"{name}.npy", tensor.numpy())
    users = UserEmbeddings.from_path(path)
    assert sorted(users.ids) == ["ada", "ben"] and len(users) == 2 and users.shape == (2, 2)
    assert "ada" in users and "eve" not in users
    batch = users.batch(["ben", None, "ada"])
    assert batch.dtype == torch.float32
    assert torch.equal(batch, torch.stack([BEN, torch.zeros(2, 2), ADA]))


def test_one_vector_is_a_row():
    users = UserEmbeddings({"ada": ADA[0].half()})
    assert users.shape == (1, 2) and torch.equal(users["ada"], ADA[:1])


def test_users_of_one_tensor_can_be_saved(tmp_path):
    users = UserEmbeddings({"ada": ADA, "eve": ADA, "ben": ADA.T})
    again = UserEmbeddings.from_path(users.save(tmp_path / "users.safetensors"))
    assert torch.equal(again["eve"], ADA) and torch.equal(again["ben"], ADA.T)


def test_unknown_users_name_the_nearest():
    users = UserEmbeddings({"user-17": ADA, "user-18": BEN})
    with pytest.raises(UserError, match="no embedding of user 'user-1O'.*did you mean 'user-1.*None"):
        users.batch(["user-17", "user-1O"])


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({}, "no embeddings of users"),
        ({"ada": ADA, "ben": BEN[:1]}, r"user 'ben' has the shape \(1, 2\), that of 'ada' \(2, 2\)"),
        ({"ada": torch.zeros(2, dtype=torch.int64)}, "floats of shape"),
        ({"ada": torch.zeros(1, 1, 2)}, r"shape \(1, 1, 2\)"),
        ({"ada": torch.zeros(0)}, r"shape \(0,\)"),
        ({"ada": ADA / 0}, "not finite"),
    ],
)
def test_embeddings_of_no_use(embeddings, message):
    with pytest.raises(UserError, match=message):
        UserEmbeddings(embeddings)


def test_files_of_no_use(tmp_path):
    with pytest.raises(UserError, match=r"no \.npy files"):
        UserEmbeddings.from_path(tmp_path)
    with pytest.raises(UserError, match="no embeddings of users at"):
        UserEmbeddings.from_path(tmp_path / "missing.npz")
    for name, message in (("a.txt", "neither"), ("a.npz", "arrays"), ("a.safetensors", "safetensors file")):
        (tmp_path / name).write_bytes(b"torn")
        with pytest.raises(UserError, match=message):
            UserEmbeddings.from_path(tmp_path / name)
    np.save(tmp_path / "text.npy", np.array(["text"]))
    with pytest.raises(UserError, match="array of numbers"):
        UserEmbeddings.from_path(tmp_path)


def test_an_embedding_is_the_mean_difference_over_the_first_pairs():
    pairs = [
        Choice(picture(0.8), picture(0.2), "bright"),
        Choice(picture(0.5), picture(0.9)),
        Choice(picture(0.1), picture(0.6, 4), "dark"),
        Choice(picture(0.6), picture(0.4), "bright"),
        Choice(picture(1.0), picture(0.0), "bright"),
    ]
    sizes = []

    def features(images):
        sizes.append(len(images))
        assert not torch.is_grad_enabled()
        return brightness(images)

    users = embed_users(pairs, features, examples=2)
    assert users.ids == ("bright", "dark") and users.shape == (1, 2) and sizes == [4, 2]
    bright = torch.tensor([[(0.6 + 0.2) / 2, (0.64 - 0.04 + 0.36 - 0.16) / 2]])
    torch.testing.assert_close(users["bright"], bright)
    torch.testing.assert_close(users["dark"], torch.tensor([[-0.5, 0.01 - 0.36]]))


def test_embeddings_in_half_precision_are_averaged_in_float32():
    pairs = [Choice(picture(0.5 + 2**-9 * i), picture(0.5), "ada") for i in (0, 1, 1)]
    users = embed_users(pairs, lambda images: images.mean((2, 3)).half())
    torch.testing.assert_close(users["ada"], torch.full((1, 3), 2**-9 * 2 / 3))


def test_pairs_that_tell_nothing():
    with pytest.raises(UserError, match="no pair says who chose"):
        embed_users([Choice(picture(0.1), picture(0.2))], brightness)
    with pytest.raises(UserError, match="examples is 0"):
        embed_users([], brightness, examples=0)
    with pytest.raises(UserError, match="user 'ada' differ in size"):
        embed_users([Choice(picture(0.1), picture(0.2, 8), "ada")], brightness)


def test_users_are_dropped_by_address():
    cond = Conditioning(torch.ones(400, 1, 2), user=torch.ones(400, 2, 3))
    key = Key(seed=0, step=3, indices=tuple(range(400)))
    dropped = drop_users(cond, 0.25, key)
    gone = (dropped.user == 0).all((1, 2))
    assert 60 < gone.sum() < 140 and (dropped.user[~gone] == 1).all()
    assert torch.equal(dropped.embeds, cond.embeds) and (cond.user == 1).all()
    half = drop_users(
        Conditioning(torch.ones(200, 1, 2), user=torch.ones(200, 2, 3)),
        0.25,
        Key(seed=0, step=3, indices=tuple(range(200, 400))),
    )
    assert torch.equal(half.user, dropped.user[200:])
    assert not torch.equal(drop_users(cond, 0.25, Key(0, 4, key.indices)).user, dropped.user)
    assert not torch.equal(drop_users(cond, 0.25, key, purpose="other").user, dropped.user)
    assert (drop_users(cond, 1.0, key).user == 0).all()
    assert torch.equal(drop_users(cond, 0.0, key).user, cond.user)


def test_what_drop_users_refuses_and_leaves_alone():
    nobody = Conditioning(torch.ones(4, 1, 2))
    assert drop_users(nobody, 0.5, Key(0, 0, (0, 1))) is nobody
    with pytest.raises(UserError, match=r"is 1\.5; it must be in \[0, 1\]"):
        drop_users(nobody, 1.5, Key(0, 0, (0, 1)))
    with pytest.raises(UserError, match="4 rows of conditioning for 2 draws.*before a batch is repeated"):
        drop_users(Conditioning(torch.ones(4, 1, 2), user=torch.ones(4, 1, 3)), 0.5, Key(0, 0, (0, 1)))
