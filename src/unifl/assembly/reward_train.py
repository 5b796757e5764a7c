"""Train a reward model on preferences: perhaps let models vote on the labels, fit, measure, and save it.

Everything is in one folder. What is under way lies in `work/`, from which an interrupted training goes on to the same
result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from unifl import config as configs
from unifl.assembly.device import chosen_device
from unifl.assembly.on_pictures import AUTOENCODER, autoencoder_facts
from unifl.assembly.reward_checks import check_training
from unifl.assembly.reward_data import encoded, open_autoencoder, open_pairs, policy_spread, with_towers
from unifl.assembly.reward_found import calibration_png, pair_facts
from unifl.assembly.reward_split import Split, split_pairs
from unifl.assembly.reward_train_config import RewardTrainConfig
from unifl.data.preferences.kept_pictures import KeptPictures
from unifl.data.preferences.rankings import rankings
from unifl.disk import claimed, require_writable, write_atomically
from unifl.errors import UserError
from unifl.feedback.fit import FitConfig, FitRow, Pairs, fit_reward, leads
from unifl.feedback.fit_loop import Watch
from unifl.feedback.fit_rankings import Ranked, fit_rankings
from unifl.feedback.reward_models import (
    RewardModel,
    RewardModelConfig,
    is_reward_model,
    make_reward_model,
    save_reward_model,
)
from unifl.feedback.voting import Strength, Treatment, treat, vote
from unifl.metrics.preference_accuracy import PreferenceAccuracy, preference_accuracy
from unifl.process import Process
from unifl.training.logging import StepLines
from unifl.training.statefile import load_state, save_state

CONFIG, METRICS, EVALUATION, CALIBRATION, VOTES = (
    "config.yaml", "metrics.jsonl", "evaluation.json", "calibration.png", "votes.jsonl",
)  # fmt: skip
_WORK, _PAIRS = "work", "pairs.sha256"

Progress = Callable[[str, int, int], None]
"""Called with (what is fitted, steps done of all fits, steps of all fits)."""


def train_reward(
    config: RewardTrainConfig, data: str, folder: Path, *, progress: Progress | None = None
) -> PreferenceAccuracy:
    """Train, or go on with it.

    Args:
        config: What and how.
        data: Preference data, see `read_preferences`.
        folder: Gets the model, and meanwhile what is needed to go on.
        progress: Called after every step.

    Returns:
        What it is worth on held-out prompts, on which nothing was chosen (`unifl.assembly.reward_split`).

    Raises:
        UserError: A folder of something else, or of other settings; data without pairs of enough prompts; whatever else
            would end the training later.
    """
    _refuse_others(config, data, folder)
    rows = open_pairs(config, data)
    split = split_pairs(rows.index, config)
    device, asked = chosen_device(config.device), config
    generator = open_autoencoder(config, device) if config.network.backbone == "latent" else None
    if generator is not None:
        config = with_towers(config, generator)
    check_training(config, rows.index, split)
    with claimed(folder / _WORK):
        _remember(asked, data, folder, pair_facts(rows.index, np.arange(len(rows)))["pairs_sha256"])
        training = _Training(config, rows, split, folder, device)
        training.progress = progress
        if generator is not None:
            training.pairs = encoded(generator, rows, folder / _WORK / "encoded")
            training.process = generator.process
            training.told = {AUTOENCODER: autoencoder_facts(config.autoencoder, generator)}
            generator = None  # its networks, which may fill a GPU, have done their work
        found = training.run()
        shutil.rmtree(folder / _WORK, ignore_errors=True)
    return found


class _Training:
    """One training: its data, its folder and how far it is."""

    progress: Progress | None = None
    process: Process | None = None
    told: Mapping[str, Any] = {}

    def __init__(
        self, config: RewardTrainConfig, rows: KeptPictures, split: Split, folder: Path, device: str
    ) -> None:
        self.config, self.rows, self.split = config, rows, split
        self.folder, self.work, self.device = folder, folder / _WORK, device
        self.pairs: Pairs = rows
        self.judged = split.fitted[~rows.index.tie[split.fitted]]
        self.voter_fit = config.voter_fit or config.fit
        self.voters = config.voting.models if config.voting is not None else 0

    def run(self) -> PreferenceAccuracy:
        """Vote, fit, measure, save."""
        treatment, voted = self._voted() if self.voters else (None, {})
        network = self._fitted("model", self.config.network, self.config.fit, treatment)
        index, measured = self.rows.index, self.split.measured
        lead = leads(network, self.pairs, measured.tolist())
        label = np.where(index.tie[measured], 0.5, 1.0)
        found = preference_accuracy(lead, label, index.prompts.codes[measured])
        write_atomically(self.folder / EVALUATION, (json.dumps(asdict(found), indent=1) + "\n").encode())
        calibration_png(found, self.folder / CALIBRATION)
        facts = {
            **pair_facts(index, self.split.fitted), **self.told, **voted, "accuracy": asdict(found.decided),
        }  # fmt: skip
        save_reward_model(network, self.folder, name=self.config.name, found=facts)
        return found

    def _voted(self) -> tuple[Treatment, dict[str, Any]]:
        """What becomes of each pair, and what to say of it; ties and held-out pairs are not voted on."""
        voting = self.config.voting
        assert voting is not None
        units = self.rows.index.prompts.codes[self.judged].astype(np.int64)
        found = vote(self._voter, units, voting, seed=self.voter_fit.seed)
        made = treat(found, voting)
        wrong, margin = (np.zeros(len(self.rows), np.float32) for _ in range(2))
        keep = np.ones(len(self.rows), bool)
        wrong[self.judged], margin[self.judged], keep[self.judged] = made.wrong, made.margin, made.keep
        self._write_votes(found, made)
        return Treatment(wrong, margin, keep), {
            "voters": voting.models, "flipped": int((found.mean < 0).sum()), "folds": voting.folds,
        }  # fmt: skip

    def _voter(self, model: int, fitted: np.ndarray) -> np.ndarray:
        """What one model says of all pairs; read if it has said it before."""
        path = self.work / f"votes-{model:03d}.npy"
        if path.is_file():
            return np.load(path)
        may = np.ones(len(self.rows), bool)
        may[self.judged] = fitted
        none = np.zeros(len(self.rows), np.float32)
        config = replace(self.voter_fit, seed=self.voter_fit.seed + 1 + model)
        shape = self.config.voters or self.config.network
        network = self._fitted(f"voter {model + 1}", shape, config, Treatment(none, none, may), number=model)
        said = leads(network, self.pairs, self.judged.tolist())
        partial_file = path.with_suffix(".part.npy")
        np.save(partial_file, said)
        partial_file.rename(path)
        return said

    def _fitted(
        self,
        name: str,
        shape: RewardModelConfig,
        config: FitConfig,
        treatment: Treatment | None,
        *,
        number: int | None = None,
    ) -> RewardModel:
        """One model, fitted or gone on with; `number` counts voters."""
        network = make_reward_model(shape, seed=config.seed)
        network.to(self.device)
        before = (self.voters if number is None else number) * self.voter_fit.steps
        path = self.work / f"{name.replace(' ', '-')}.safetensors"
        state = load_state(path, self.device) if path.is_file() else None
        lines = StepLines(self.folder / METRICS, step=before + (state["step"] if state else 0))

        def measured(row: FitRow) -> None:
            lines.write(
                before + row.step, {"fit": name, **{k: v for k, v in asdict(row).items() if k != "step"}}
            )

        def keep(found: dict[str, Any]) -> None:
            lines.sync()
            save_state(found, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)

        watch = Watch(measured=measured, keep=keep, state=state, stepped=partial(self._stepped, name, before))
        policy, spread = self.config.policy, None
        if policy is not None and number is None:
            spread = policy_spread(policy, network, resolution=self.rows.resolution, seed=config.seed)
        try:
            if self.config.rankings:
                self._fit_rankings(network, config, watch, spread)
            else:
                fit_reward(
                    network, self.pairs, config=config, held_out=self.split.ends.tolist(),
                    fitted=self.split.fitted.tolist(), treatment=treatment,
                    process=self.process if shape.timed else None, spread=spread, watch=watch,
                )  # fmt: skip
        finally:
            lines.close()
        return network

    def _fit_rankings(self, network: nn.Module, config: FitConfig, watch: Watch, spread: Any) -> None:
        import torch

        found = rankings(self.rows.index, self.split.fitted.tolist())

        def read(number: int) -> Ranked:
            one = found[number]
            return Ranked(one.prompt, torch.stack([self.rows.image(picture) for picture in one.pictures]))

        ends = KeptPictures(self.rows.index.take(self.split.ends), resolution=self.rows.resolution)
        fit_rankings(network, read, len(found), ends, config=config, spread=spread, watch=watch)

    def _stepped(self, name: str, before: int, step: int) -> None:
        if self.progress is not None:
            total = self.voters * self.voter_fit.steps + self.config.fit.steps
            self.progress(name, before + step, total)

    def _write_votes(self, found: Strength, made: Treatment) -> None:
        """A line per pair, those first that are most against their label."""
        rows = []
        for place in np.argsort(found.mean, kind="stable").tolist():
            rows.append(
                {
                    "pair": self.rows.name(int(self.judged[place])),
                    "strength": round(float(found.mean[place]), 5),
                    "std": round(float(found.std[place]), 5),
                    "votes": int(found.votes[place]),
                    "wrong": round(float(made.wrong[place]), 5),
                    "margin": round(float(made.margin[place]), 5),
                }
            )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.folder / VOTES, text.encode(errors="surrogatepass"))


def _settings(config: RewardTrainConfig, data: str) -> str:
    return configs.dump(config) + f"data: {data}\n"


def _refuse_others(config: RewardTrainConfig, data: str, folder: Path) -> None:
    """Find that a folder is new, or about this training; nothing is written."""
    path = folder / CONFIG
    if is_reward_model(folder):
        raise UserError(
            f"{folder} holds a reward model whose training is complete (what it is worth is in {EVALUATION}); name "
            "another folder to train one more"
        )
    if path.is_file():
        if path.read_text(encoding="utf-8") != _settings(config, data):
            raise UserError(
                f"{folder} holds a training of other settings or data, which are in {path}; name another folder, or "
                "remove it"
            )
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the reward model")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder for the reward model")


def _remember(config: RewardTrainConfig, data: str, folder: Path, pairs: str) -> None:
    """Write down what is trained on which pairs, or find that the pairs are those of the training that goes on."""
    known = folder / _WORK / _PAIRS
    require_writable(known)
    if known.is_file() and known.read_text(encoding="utf-8") != pairs:
        raise UserError(
            f"{data} has changed since the training in {folder} began; name another folder, or remove that one"
        )
    write_atomically(known, pairs.encode())
    write_atomically(folder / CONFIG, _settings(config, data).encode())
