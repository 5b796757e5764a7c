"""Users of preference pairs: every pair has one, and every user an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data.pairs import EncodedPair, Pair
from unifl.data.users import UserEmbeddings
from unifl.errors import UserError
from unifl.methods.base import Source
from unifl.models.generator import Generator
from unifl.models.user import UserRoles

_SHOWN = 3


def check_users(
    name: str, source: Source, generator: Generator, users: UserEmbeddings | None, *, dropout: float
) -> None:
    """Refuse users that the model does not read, and a source whose users have no embeddings.

    What a source says of its users (`source.users`, each once, None where a pair has none) is believed, so that no
    picture is read; of another source, each batch is checked as it comes.

    Args:
        name: What the source is called.
        source: Pairs.
        generator: The model.
        users: Embeddings; None where none are given.
        dropout: Probability that a pair is seen without its user.

    Raises:
        UserError: See above; embeddings of another length than the adapter takes; a dropout that is no probability,
            or that has no users to drop.
    """
    if not 0 <= dropout <= 1:
        raise UserError(f"user_dropout is {dropout}; it must be in [0, 1]")
    roles = generator.roles
    if isinstance(roles, UserRoles) != (users is not None):
        raise UserError(
            "a model with a user adapter learns from pairs whose users have embeddings, and no other model reads "
            "them; give users=UserEmbeddings.from_path(...) and train UserTraining, or neither"
        )
    if users is None or not isinstance(roles, UserRoles):
        if dropout > 0:
            raise UserError("user_dropout is for a model with a user adapter; set it to 0")
        return
    width = roles.settings.embedding_dim
    if users.shape[1] != width:
        raise UserError(
            f"embeddings of users have {users.shape[1]} numbers and the adapter takes {width}; set embedding_dim to "
            "what the embeddings have"
        )
    _check_known(name, getattr(source, "users", ()), users)


def _check_known(name: str, found: Sequence[str | None], users: UserEmbeddings) -> None:
    if None in found:
        raise UserError(
            f"the source {name!r} has pairs that do not say who chose; leave them out, or give them a user with an "
            "embedding (zeros stand for somebody unknown)"
        )
    strangers = [user for user in found if user is not None and user not in users]
    if strangers:
        more = ", ..." if len(strangers) > _SHOWN else ""
        raise UserError(
            f"{len(strangers)} of {len(found)} users of the source {name!r} have no embedding "
            f"({', '.join(map(repr, strangers[:_SHOWN]))}{more}); compute them, or leave out the pairs of these users"
        )


def embeddings_of(
    rows: Sequence[Pair] | Sequence[EncodedPair], users: UserEmbeddings
) -> Float[Tensor, "b n e"]:
    """The embedding of the user of each pair.

    Raises:
        UserError: A pair without a user, or one whose user has no embedding; with its prompt.
    """
    found = []
    for row in rows:
        if row.user is None:
            raise UserError(
                f"the pair of {row.prompt!r} does not say who chose; leave such pairs out, or give them a user with an "
                "embedding (zeros stand for somebody unknown)"
            )
        try:
            found.append(users[row.user])
        except UserError as error:
            raise UserError(f"the pair of {row.prompt!r}: {error}") from error
    return torch.stack(found)
