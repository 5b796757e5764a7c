"""One claim from start to end, as small as it gets: trainings of a step, a few prompts, the validation judge."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from unifl.metrics.result import read_result
from unifl.reproduce.parts import Piece
from unifl.reproduce.run import Request, reproduce
from unifl.reproduce.unifl_claims import NEEDED, PAPER
from unifl.world.assets import load_judge

SMALL = ("training.max_train_steps=1", "training.train_batch_size=2", "training.lr_warmup_steps=0")


@pytest.mark.slow
def test_a_claim_from_start_to_end(tmp_path):
    torch.set_num_threads(1)
    # the settings of the baseline are taken from the package; searching them takes minutes
    prepared = tmp_path / "results" / "unifl" / "prepared"
    prepared.mkdir(parents=True)
    one = '{"best": {"guidance": 1.0, "spacing": "trailing"}}'
    steps = ", ".join(f'"{number}": {one}' for number in (1, 2, 4, 8, 20))
    (prepared / "baselines.json").write_text("{" + steps + "}")
    request = Request(claims=("e",), seeds=(0, 1), num_prompts=3, changes=SMALL)
    findings = reproduce(
        PAPER, tmp_path / "results", tmp_path / "runs", request, gold=lambda: load_judge("validation"),
        console=Console(quiet=True),
    )  # fmt: skip
    assert findings is not None
    claim = read_result(tmp_path / "results" / "unifl.json").claims[0]
    assert (claim.id, claim.n, claim.train_seeds) == ("e", 6, 2)
    pieces = sorted(path.stem for path in (tmp_path / "results" / "unifl" / "pieces").iterdir())
    assert pieces == sorted(f"{name}-seed{seed}" for name in NEEDED["e"] for seed in (0, 1))
    runs = {path.name.split("-seed")[0] for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    # further looks are at the same runs; what was fixed later has runs of its own
    assert runs == {"finetune", "style", "finetune-again", "style-again"}
    assert (tmp_path / "results" / "unifl" / "claim-e.png").exists()
    first, second = (
        Piece.load(tmp_path / "results" / "unifl" / "pieces" / f"base-seed{seed}.npz") for seed in (0, 1)
    )
    # the packaged model is the same for all training seeds, but draws with other noise
    assert (first.looks["end"].values["overall"] != second.looks["end"].values["overall"]).any()
