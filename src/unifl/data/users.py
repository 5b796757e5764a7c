"""For whom pictures are: embeddings of users by their ids.

An embedding is n vectors of e numbers. Accepted are a `.safetensors` or `.npz` file with one array per user, under the
user's id, and a folder of `<id>.npy` files; arrays have the shape (e,) or (n, e). Zeros stand for a user who is not
known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unifl.disk import read_arrays
from unifl.errors import UserError, nearest
from unifl.losses.precision import at_least_float32
from unifl.models.conditioning import Conditioning
from unifl.randomness import Key


@runtime_checkable
class UserPair(Protocol):
    """What `embed_users` reads of a preference pair; images are in [0, 1]."""

    @property
    def win(self) -> Tensor:
        """The picture that was preferred (3, h, w)."""

    @property
    def lose(self) -> Tensor:
        """The other one (3, h, w)."""

    @property
    def user(self) -> str | None:
        """Who chose."""


class UserEmbeddings:
    """Embeddings by user id; `len()`, `in`, indexing by id, and `batch`.

    Attributes:
        ids: The users, in the order in which they were given.
        shape: (n, e), the same for all.
    """

    def __init__(self, embeddings: Mapping[str, Tensor]) -> None:
        """Takes embeddings that are in memory.

        Args:
            embeddings: (e,) or (n, e) by user.

        Raises:
            UserError: No users, or embeddings of differing or unusable shape, or with values that are not finite.
        """
        if not embeddings:
            raise UserError("there are no embeddings of users; check that the data is not empty")
        self._by_id = {user: _checked(user, tensor) for user, tensor in embeddings.items()}
        self.ids = tuple(self._by_id)
        vectors, width = self[self.ids[0]].shape
        self.shape = (vectors, width)
        for user, embedding in self._by_id.items():
            if embedding.shape != self.shape:
                raise UserError(
                    f"the embedding of user {user!r} has the shape {tuple(embedding.shape)}, that of {self.ids[0]!r} "
                    f"{self.shape}; compute all in the same way"
                )

    @classmethod
    def from_path(cls, path: str | Path) -> UserEmbeddings:
        """Reads the formats at the top of this file.

        Raises:
            UserError: Nothing to read, or see the class.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            arrays = {file.stem: _read_npy(file) for file in sorted(path.glob("*.npy"))}
            if not arrays:
                raise UserError(f"{path} holds no .npy files; save one per user, named <user id>.npy")
            return cls(arrays)
        if not path.is_file():
            raise UserError(f"there are no embeddings of users at {path}; check the path")
        if path.suffix == ".npz":
            return cls(_read_npz(path))
        if path.suffix != ".safetensors":
            raise UserError(
                f"{path} is neither .safetensors nor .npz nor a folder of .npy files; save it as one"
            )
        try:
            return cls(load_file(str(path)))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as a safetensors file: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Writes a `.safetensors` file, which `from_path` reads."""
        # copies, since users may share the memory of one tensor, which the format refuses
        save_file(
            {
                user: tensor.clone(memory_format=torch.contiguous_format)
                for user, tensor in self._by_id.items()
            },
            str(path),
        )
        return Path(path)

    def __len__(self) -> int:
        """Number of users."""
        return len(self.ids)

    def __contains__(self, user: object) -> bool:
        """Whether there is an embedding of a user."""
        return user in self._by_id

    def __getitem__(self, user: str) -> Float[Tensor, "n e"]:
        """The embedding of one user.

        Raises:
            UserError: There is none.
        """
        if user not in self._by_id:
            close = nearest(user, self.ids)
            hint = f"did you mean {close!r}? " if close else ""
            raise UserError(
                f"there is no embedding of user {user!r} among {len(self)}; {hint}compute it from some of the user's "
                "pairs, or pass None for somebody unknown"
            )
        return self._by_id[user]

    def batch(self, users: Sequence[str | None]) -> Float[Tensor, "b n e"]:
        """Embeddings of b users, for `Conditioning.user`; zeros for None.

        Raises:
            UserError: A user without an embedding.
        """
        unknown = torch.zeros(self.shape)
        return torch.stack([unknown if user is None else self[user] for user in users])


def embed_users(
    pairs: Iterable[UserPair],
    features: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b e"]],
    *,
    examples: int = 4,
) -> UserEmbeddings:
    """What a user prefers, as a direction: mean features of preferred pictures minus those of rejected ones.

    A stand-in for the paper's embedding, which reads the same pairs with a vision-language model: it needs no more than
    features of pictures, and knows only what they know.

    Args:
        pairs: Preference pairs; those without a user are passed over.
        features: Of pictures in [0, 1]. Called without gradient, once per user with at most 2 * `examples` pictures.
        examples: How many of a user's pairs are read, the first ones (4 in PPD); users with fewer are embedded by those
            they have.

    Returns:
        One vector per user.

    Raises:
        UserError: No pair has a user, or pictures of one user differ in size.
    """
    if examples < 1:
        raise UserError(f"examples is {examples}; an embedding needs at least 1 pair of a user")
    chosen: dict[str, list[UserPair]] = {}
    for pair in pairs:
        if pair.user is not None and len(chosen.setdefault(pair.user, [])) < examples:
            chosen[pair.user].append(pair)
    if not chosen:
        raise UserError("no pair says who chose; embeddings of users need pairs with a `user`")
    return UserEmbeddings({user: _direction(user, some, features) for user, some in chosen.items()})


def drop_users(
    cond: Conditioning, probability: float, key: Key, *, purpose: str = "user dropout"
) -> Conditioning:
    """The same conditioning, some rows for an unknown user; one draw per (seed, step, index).

    A model so trained also learns what most users like, and can be guided away from it. Call it before a batch of pairs
    is repeated for winners and losers, which have to share their user.

    Args:
        cond: One row per index of the key; without users it is given back as it is.
        probability: In [0, 1]; 0 drops none and 1 drops all.
        key: Address of the rows.
        purpose: Other words give other draws.

    Raises:
        UserError: Not a probability, or another number of rows.
    """
    if not 0 <= probability <= 1:
        raise UserError(f"the probability of dropping a user is {probability}; it must be in [0, 1]")
    if cond.user is None:
        return cond
    if len(cond) != len(key):
        raise UserError(
            f"there are {len(cond)} rows of conditioning for {len(key)} draws; drop users before a batch is repeated"
        )
    gone = (key.uniform(purpose) < probability).to(cond.user.device)
    return replace(cond, user=cond.user.masked_fill(gone[:, None, None], 0))


@torch.no_grad()
def _direction(
    user: str, pairs: Sequence[UserPair], features: Callable[[Tensor], Tensor]
) -> Float[Tensor, " e"]:
    pictures = [pair.win for pair in pairs] + [pair.lose for pair in pairs]
    if len({picture.shape for picture in pictures}) > 1:
        raise UserError(f"pictures of user {user!r} differ in size; read the pairs at one resolution")
    win, lose = at_least_float32(features(torch.stack(pictures))).chunk(2)
    return (win - lose).mean(0).cpu()


def _checked(user: str, tensor: Tensor) -> Float[Tensor, "n e"]:
    if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or tensor.numel() == 0:
        raise UserError(
            f"the embedding of user {user!r} has the shape {tuple(tensor.shape)} and the type {tensor.dtype}; needed "
            "are floats of shape (e,) or (n, e)"
        )
    if not tensor.isfinite().all():
        raise UserError(f"the embedding of user {user!r} has values that are not finite; compute it again")
    return tensor.detach().float().reshape(-1, tensor.shape[-1])


def _read_npy(path: Path) -> Tensor:
    try:
        return torch.as_tensor(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UserError(f"{path} cannot be read as an array of numbers: {error}") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        return {user: torch.as_tensor(array) for user, array in read_arrays(path).items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as arrays of numbers: {error}") from error
