"""Fit a reward network to preferences (Bradley-Terry, with what labels of people need beyond it).

Used by reward models of every axis: r learns that the preferred picture of a pair scores higher, with
L = -E log sigmoid(r(c, x_win) - r(c, x_lose)) (UniFL, arXiv 2404.05595, equation 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from unifl.data.pairs import EncodedPair, Pair
from unifl.errors import UserError
from unifl.feedback.fit_config import FitConfig as FitConfig
from unifl.feedback.fit_config import FitResult as FitResult
from unifl.feedback.fit_config import FitRow as FitRow
from unifl.feedback.fit_config import check_fit
from unifl.feedback.fit_loop import Watch, run_fit
from unifl.feedback.voting import Treatment
from unifl.losses.reward_modelling import labelled_pair, two_views
from unifl.process import Process
from unifl.randomness import Key, row_order


@runtime_checkable
class Pairs(Protocol):
    """Pairs by row: `PreferencePairs`, `PreferenceSet`, `EncodedPairs`."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


def fit_reward(
    network: nn.Module,
    pairs: Pairs,
    *,
    config: FitConfig,
    progress: Callable[[FitRow], None] | None = None,
    held_out: Sequence[int] | None = None,
    fitted: Sequence[int] | None = None,
    treatment: Treatment | None = None,
    process: Process | None = None,
    spread: Callable[[int], Float[Tensor, ""]] | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """Train `network(images, prompts) -> (b,)` in place and leave it in eval mode.

    Args:
        network: Its parameters with `requires_grad` are trained; pictures go to the device they are on.
        pairs: All pairs, noisy labels included; of pictures, or of latents that were encoded once.
        config: Settings.
        progress: Called with every measurement.
        held_out: Rows that are kept back; by default a random share of them. Where a prompt has several pairs, keep
            them together (`split_by_unit`).
        fitted: With `held_out`: rows that are learnt from; by default all others.
        treatment: What a vote says of each pair (`unifl.feedback.voting`).
        process: Show latents at random times with noise on them, one time and one noise for both of a pair; the network
            is then called with (latents, prompts, t).
        spread: For MetaRM; see `run_fit`.
        watch: Who looks on, and where the fit goes on from, in place of `progress`.

    Raises:
        UserError: Settings out of range, too few pairs to keep some back, or nothing to train.
    """
    check_fit(config)
    held, kept = _split(pairs, config, held_out, fitted)
    if treatment is not None:
        kept = [row for row in kept if treatment.keep[row]]
        if not kept:
            raise UserError(
                "the vote drops every pair that is not held out; flip labels in place of dropping"
            )

    def loss(step: int) -> Tensor:
        first = (step - 1) * config.batch_size
        numbers = range(first, first + config.batch_size)
        rows = [kept[row_order(len(kept), config.seed, "fit", number)] for number in numbers]
        key = Key(config.seed, step, tuple(range(config.batch_size)))
        return _batch_loss(network, [pairs[row] for row in rows], config, rows, treatment, process, key)

    def measure() -> tuple[float, float]:
        return measure_pairs(network, pairs, held, config.batch_size)

    history, best = run_fit(
        network, loss, measure, config=config, watch=watch or Watch(measured=progress), spread=spread
    )
    return FitResult(history, best, held)


def preference_loss(
    network: nn.Module, pairs: Sequence[Pair], *, label_noise: float = 0.0
) -> Float[Tensor, ""]:
    """Mean Bradley-Terry loss of some pairs; both pictures of all pairs go through the network together.

    With label noise e it is the expectation over labels that are flipped with probability e:
    (1 - e) L(win, lose) + e L(lose, win).
    """
    return _batch_loss(network, pairs, FitConfig(label_noise=label_noise))


@torch.no_grad()
def leads(
    network: nn.Module, pairs: Pairs, rows: Sequence[int], *, batch_size: int = 64
) -> Float[np.ndarray, " m"]:
    """r(labelled winner) - r(other) of some rows, without noise, in eval mode."""
    network.eval()
    found = []
    for start in range(0, len(rows), batch_size):
        win, lose = _scores(network, [pairs[row] for row in rows[start : start + batch_size]])
        found.append((win - lose).double().cpu())
    return torch.cat(found).numpy()


def split_by_unit(units: Sequence[int] | np.ndarray, share: float, *, seed: int) -> list[int]:
    """Rows to keep back: all rows of about a share of the units.

    Args:
        units: What belongs together, such as the number of each pair's prompt.
        share: In (0, 1).
        seed: Of the choice.

    Raises:
        UserError: A single unit, which cannot be on both sides.
    """
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    number = int(unit.max()) + 1
    if number < 2 or not 0 < share < 1:
        raise UserError(
            f"cannot keep back a share of {share} of {number} prompts; use pairs of more prompts, or another share"
        )
    wanted = min(number - 1, max(1, round(share * number)))
    chosen = {row_order(number, seed, "fit/split", place) for place in range(wanted)}
    return np.flatnonzero(np.isin(unit, list(chosen))).tolist()


def _split(
    pairs: Pairs, config: FitConfig, held_out: Sequence[int] | None, fitted: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    if held_out is None:
        if fitted is not None:
            raise UserError("rows to fit to need rows that are held out beside them; give held_out, too")
        _check_share(config, pairs)
        order = [row_order(len(pairs), config.seed, "fit/split", row) for row in range(len(pairs))]
        number = max(1, round(config.held_out * len(pairs)))
        return order[:number], order[number:]
    held = sorted(set(held_out))
    kept = sorted(set(range(len(pairs)) if fitted is None else fitted) - set(held))
    if not held or not kept:
        raise UserError("a reward fit needs pairs to train on and pairs that are held out; give it both")
    return held, kept


def _batch_loss(
    network: nn.Module,
    pairs: Sequence[Any],
    config: FitConfig,
    rows: Sequence[int] = (),
    treatment: Treatment | None = None,
    process: Process | None = None,
    key: Key | None = None,
) -> Float[Tensor, ""]:
    images, prompts, times = _shown(network, pairs, config, process, key)
    features: Tensor | None = None
    if config.contrastive > 0:
        if not hasattr(network, "features") or not hasattr(network, "drop"):
            raise UserError(
                f"{type(network).__name__} has no features with dropout, which contrastive needs; set it to 0, or fit "
                "a RewardModel"
            )
        features = network.features(images, prompts, *times)  # type: ignore[operator]
        scores = network.judge(network.drop(features))  # type: ignore[operator]
    else:
        scores = network(images, prompts, *times)
    win, lose = scores.float().chunk(2)
    wrong, margin = _labels(pairs, config, rows, treatment, win)
    tie = torch.tensor([pair.tie for pair in pairs], device=win.device)
    loss = labelled_pair(win - lose, wrong, margin, tie=tie, theta=config.theta).mean()
    if features is not None:
        views = (network.drop(features), network.drop(features))  # type: ignore[operator]
        loss = loss + config.contrastive * two_views(*views, config.temperature).mean()
    return loss


def _labels(
    pairs: Sequence[Any], config: FitConfig, rows: Sequence[int], treatment: Treatment | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The chance that each label is wrong, and its margin."""
    if config.soft_labels:
        wrong = like.new_tensor([(1 - pair.strength) / 2 for pair in pairs])
    else:
        wrong = torch.zeros_like(like)
    margin = torch.full_like(like, config.margin)
    if treatment is not None:
        voted = like.new_tensor(np.asarray(treatment.wrong)[list(rows)])
        wrong = wrong * (1 - voted) + (1 - wrong) * voted
        margin = margin + like.new_tensor(np.asarray(treatment.margin)[list(rows)])
    wrong = wrong * (1 - config.label_noise) + (1 - wrong) * config.label_noise
    tie = torch.tensor([pair.tie for pair in pairs], device=like.device)
    return torch.where(tie, 0.5, wrong), torch.where(tie, 0.0, margin)


def _shown(
    network: nn.Module, pairs: Sequence[Any], config: FitConfig, process: Process | None, key: Key | None
) -> tuple[Tensor, list[str], tuple[Tensor, ...]]:
    """Winners and then losers, their prompts and, on noisy latents, their times."""
    device = next(network.parameters()).device
    images = torch.stack([*(_seen(pair.win) for pair in pairs), *(_seen(pair.lose) for pair in pairs)])
    images, prompts = images.to(device), [pair.prompt for pair in pairs] * 2
    if process is None or key is None:
        return images, prompts, ()
    t = key.uniform("fit/time")
    t = torch.where(key.uniform("fit/clean") < config.clean_share, 0.0, t).to(device)
    eps = key.normal("fit/noise", images.shape[1:], device)
    t, eps = t.repeat(2), eps.repeat(2, *(1 for _ in images.shape[1:]))
    return process.add_noise(images, eps, t), prompts, (t,)


def _seen(picture: Any) -> Tensor:
    """A picture, or the mean of its latents."""
    return picture if isinstance(picture, Tensor) else picture.mean


def _scores(network: nn.Module, pairs: Sequence[Pair | EncodedPair]) -> tuple[Tensor, Tensor]:
    images, prompts, _ = _shown(network, pairs, FitConfig(), None, None)
    win, lose = network(images, prompts).float().chunk(2)
    return win, lose


@torch.no_grad()
def measure_pairs(
    network: nn.Module, pairs: Pairs, rows: Sequence[int], batch_size: int
) -> tuple[float, float]:
    """Loss and accuracy (a tie counts half) on held-out rows."""
    losses, right = [], []
    for start in range(0, len(rows), batch_size):
        some = [pairs[row] for row in rows[start : start + batch_size]]
        win, lose = _scores(network, some)
        tie = torch.tensor([pair.tie for pair in some], device=win.device)
        losses.append(labelled_pair(win - lose, 0.5 * tie.float()))
        right.append(torch.where(tie, 0.5, (win > lose).float() + 0.5 * (win == lose).float()))
    return float(torch.cat(losses).mean()), float(torch.cat(right).mean())


def _check_share(config: FitConfig, pairs: Pairs) -> None:
    if not 0 < config.held_out < 1 or len(pairs) < 2:
        raise UserError(
            f"cannot keep back a share of {config.held_out} of {len(pairs)} pairs; use more pairs"
        )
    if round(config.held_out * len(pairs)) >= len(pairs):
        raise UserError(f"held_out={config.held_out} leaves no pair to train on; lower it")
