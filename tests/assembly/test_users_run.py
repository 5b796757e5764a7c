"""A recipe that trains for users, from its files to pictures for one of them."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch
from PIL import Image

from preference_files import write_jsonl, write_pictures
from unifl.assembly.build import assemble
from unifl.assembly.evaluate import weights_sha256
from unifl.assembly.generate import generate_pictures
from unifl.assembly.open_model import open_model
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.cli import app
from unifl.data.users import UserEmbeddings
from unifl.errors import UserError
from unifl.sampling import sample
from unifl.testing import tiny_folder

RECIPE = """
output_dir: runs/ppd
model:
  pretrained_model_name_or_path: tiny
  train: {kind: user, embedding_dim: 2, tokens: 2}
method: {kind: preference, objective: {kind: dpo, beta: 500}, user_dropout: 0.2}
data:
  pairs: {kind: preferences, path: pairs}
users: users.safetensors
training: {max_train_steps: 3, train_batch_size: 4, learning_rate: 0.03, checkpointing_steps: 3}
sampling: {num_steps: 3, guidance: 2.0, spacing: leading}
"""
LORA = ["model.train={kind: lora, rank: 2}", "users=null", "method.user_dropout=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("users")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_folder("sd15", folder / "tiny")
        write_pictures(folder / "pairs")
        write_jsonl(
            folder / "pairs" / "metadata.jsonl",
            [
                {"prompt": "a cat", "chosen": f"{win}.png", "rejected": f"{lose}.png", "user": user}
                for user, win, lose in (("ada", "a", "b"), ("ada", "d", "c"), ("ben", "b", "a"))
            ],
        )
        embeddings = {"ada": torch.tensor([1.0, -1.0]), "ben": torch.tensor([-1.0, 1.0])}
        UserEmbeddings(embeddings).save(folder / "users.safetensors")
        run_recipe(load_recipe(RECIPE), progress=False)
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of its own, which is the working folder meanwhile."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_run_for_users_is_opened_again_and_drawn_by_diffusers(place):
    users = UserEmbeddings.from_path("users.safetensors")
    opened = open_model("runs/ppd")
    how = {"num_steps": 3, "guidance": 2.0, "spacing": "leading", "indices": [0, 0, 0]}
    told = torch.stack([users["ada"], users["ben"], torch.zeros(users.shape)])
    ada, ben, nobody = sample(opened.generator, ["a cat"] * 3, users=told, **how)
    assert (ada - ben).abs().max() > 1e-3 and (ada - nobody).abs().max() > 1e-3
    assert "text-to-image user adapter trained" in (place / "runs/ppd/model/README.md").read_text()
    plain = diffusers.StableDiffusionPipeline.from_pretrained("tiny", safety_checker=None)
    plain.load_ip_adapter(
        "runs/ppd/model", subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None
    )
    weights = plain.unet.state_dict()
    mine = opened.generator.modules()["unet"].state_dict()
    assert weights.keys() == mine.keys() and all(torch.equal(weights[name], mine[name]) for name in weights)
    assert (place / "runs/ppd/checkpoint-3/model/ip_adapter.safetensors").is_file()


def test_the_hash_of_a_model_for_users_is_that_of_its_base_and_adapter(place):
    built = assemble(load_recipe(RECIPE))
    untrained, base = weights_sha256(built.generator), open_model("tiny").generator
    opened = open_model("runs/ppd").generator
    assert weights_sha256(opened) == weights_sha256(open_model("runs/ppd/checkpoint-3").generator)
    assert len({weights_sha256(opened), untrained, weights_sha256(base)}) == 3
    assert weights_sha256(built.generator, "reference") == weights_sha256(base)


def test_training_goes_on_from_a_run_for_users(place):
    start = "model.pretrained_model_name_or_path=runs/ppd"
    built = assemble(load_recipe(RECIPE, [start, "output_dir=runs/more"]))
    assert weights_sha256(built.generator) == weights_sha256(open_model("runs/ppd").generator)
    with pytest.raises(UserError, match="a run that trained a user adapter, which goes on with"):
        assemble(load_recipe(RECIPE, [start, *LORA]))
    with pytest.raises(UserError, match="does not fit this model"):
        assemble(load_recipe(RECIPE, [start, "model.train.tokens=3"]))
    with pytest.raises(UserError, match="a user adapter, which is no LoRA"):
        assemble(load_recipe(RECIPE, ["model.lora=runs/ppd"]))
    with pytest.raises(UserError, match="holds a user adapter without its model"):
        shutil.copytree("runs/ppd/model", "alone")
        open_model("alone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["users=null"], "go together"),
        (LORA[:1], "go together"),
        (["method={kind: sft}"], "method"),
        (["method={kind: finetune, source: pairs}"], "finetune reads no users"),
        (["users=nowhere.safetensors"], "nowhere.safetensors"),
        (["users='???'"], r"users=\.\.\."),
        (["model.train.embedding_dim=3"], "have 2 numbers and the adapter takes 3"),
    ],
)
def test_users_that_do_not_fit_are_refused_before_training(place, changes, message):
    with pytest.raises(UserError, match=message):
        run_recipe(load_recipe(RECIPE, [*changes, "output_dir=runs/new"]), progress=False)
    assert not (place / "runs/new").exists()


def test_a_user_without_an_embedding_is_named(place):
    UserEmbeddings({"ada": torch.ones(2)}).save("users.safetensors")
    with pytest.raises(UserError, match=r"1 of 2 users of the source 'pairs' have no embedding \('ben'\)"):
        assemble(load_recipe(RECIPE))


def test_pictures_are_drawn_for_a_user(place, monkeypatch):
    from typer.testing import CliRunner

    def draw(out, *arguments):
        command = ["generate", "runs/ppd", "a cat", "--device", "cpu", "--out", out, *arguments]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return Image.open(place / out / "00000_0.png").tobytes()

    drawn = {user: draw(user, "--users", "users.safetensors", "--user", user) for user in ("ada", "ben")}
    assert len({*drawn.values(), draw("nobody")}) == 3
    assert json.loads((place / "ada/metadata.jsonl").read_text())["user"] == "ada"
    with pytest.raises(UserError, match="tiny has no user adapter"):
        user = ("ada", torch.zeros(1, 2))
        generate_pictures(open_model("tiny", num_steps=1), ["a cat"], "out", user=user)
    assert open_model("runs/ppd", dtype=torch.bfloat16).generator.mixed_precision == "bf16"
