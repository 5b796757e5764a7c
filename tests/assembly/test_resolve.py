from __future__ import annotations

import json

import pytest
import torch
from assembly_toy import PROMPTS, Reader, RewardNet, refl_recipe, write_pictures
from PIL import Image

from unifl.assembly import resolve, sources, world_names
from unifl.assembly.build import assemble
from unifl.assembly.figures import Spec
from unifl.assembly.locate import locate_model
from unifl.assembly.recipe import Part, load_recipe
from unifl.errors import UserError
from unifl.feedback import NetworkFeedback
from unifl.feedback.networks import RewardNetwork, SharedTrunk, save_family

PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_functions_factories_and_classes_become_feedback():
    plain = resolve.feedback("assembly_toy:red", name="red")
    made = resolve.feedback(Part(path="assembly_toy:scaled", kwargs={"factor": 2.0}), name="twice")
    alone = resolve.feedback(Part(path="assembly_toy:red_alone", needs_prompt=False), name="alone")
    network = resolve.feedback(Part(path="assembly_toy:RewardNet", kwargs={"scale": 3.0}), name="net")
    assert torch.equal(made(PICTURES, ["", ""]), 2 * plain(PICTURES, ["", ""]))
    assert torch.equal(alone(PICTURES, ["", ""]), plain(PICTURES, ["", ""]))
    assert torch.allclose(network(PICTURES, ["", ""]), 3 * RewardNet()(PICTURES, ["", ""]))
    assert isinstance(network, NetworkFeedback)
    assert not any(parameter.requires_grad for parameter in network.network.parameters())


def test_networks_of_combined_feedback_are_moved_too():
    part = Part(path="assembly_toy:mixed", kwargs={"factor": 0.5})
    total = resolve.feedback(part, name="mixed", device="meta").feedback
    first, second = (feedback for feedback, _ in total.parts)
    for network in (first.network, second.feedback.network):
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    plain = RewardNet()(PICTURES, ["", ""])
    torch.testing.assert_close(resolve.feedback(part, name="mixed")(PICTURES, ["", ""]), plain)


def test_a_module_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text(
        "def blue(images, prompts):\n    return images[:, 2].mean((1, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    blue = resolve.feedback("rewards_of_mine:blue", name="blue")
    assert torch.equal(blue(PICTURES, ["", ""]), PICTURES[:, 2].mean((1, 2)))


def test_reward_weights_of_a_folder(tmp_path):
    trunk = SharedTrunk()
    network = RewardNetwork(trunk).eval()
    save_family(trunk, {"sharp": network}, tmp_path / "mine")
    found = resolve.feedback(str(tmp_path / "mine" / "sharp"), name="sharp")
    pictures = torch.rand(1, 3, 64, 64)
    assert torch.allclose(
        found(pictures, ["a"]), network(pictures, ["a"]), atol=0.02
    )  # stored in half precision
    alone = resolve.feedback(str(tmp_path / "mine"), name="sharp")  # one head: the folder is enough
    assert torch.equal(alone(pictures, ["a"]), found(pictures, ["a"]))
    with pytest.raises(UserError, match="there are no weights at"):
        resolve.feedback(str(tmp_path / "mine" / "dull"), name="dull")
    with pytest.raises(UserError, match=r"no reward 'color'; set rewards.*world:rewards/<axis>"):
        resolve.feedback("color", name="color")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("sharpnes", "scorer:sharpness"),
        ("PickScore", "scorer:pickscore"),
        ("pickscore", "scorer:pickscore"),  # a recipe needs the prefix
        ("runs/rewrd", "runs/reward"),
    ],
)
def test_a_misspelt_reward_is_answered_with_the_nearest(tmp_path, monkeypatch, written, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/reward").mkdir(parents=True)
    (tmp_path / "runs/rewrd.txt").write_text("")  # a file is no reward
    with pytest.raises(UserError, match=rf"no reward '{written}'; set .* Did you mean {meant}\?$"):
        resolve.feedback(written, name="mine")


def test_nothing_alike_is_no_question(tmp_path):
    with pytest.raises(UserError, match=r"package.module:name$"):
        resolve.feedback(str(tmp_path / "xyz"), name="mine")


def test_rewards_of_one_folder_share_its_trunk(tmp_path):
    trunk = SharedTrunk()
    save_family(trunk, {"sharp": RewardNetwork(trunk), "bright": RewardNetwork(trunk)}, tmp_path / "both")
    save_family(trunk, {"sharp": RewardNetwork(trunk)}, tmp_path / "apart")
    given = {"a": "both/sharp", "b": "both/bright", "c": "apart/sharp"}
    found = resolve.rewards({name: str(tmp_path / path) for name, path in given.items()})
    trunks = [found[name].network.trunk for name in "abc"]
    assert trunks[0] is trunks[1] and trunks[0] is not trunks[2]
    with pytest.raises(UserError, match=r"both holds the heads bright, sharp; name one as .*both/<head>"):
        resolve.feedback(str(tmp_path / "both"), name="a")


def test_heads_of_another_trunk_are_not_mixed(tmp_path):
    first, second = RewardNetwork(), RewardNetwork()
    save_family(first.trunk, {"color": first}, tmp_path)
    with pytest.raises(UserError, match="holds color, fitted on another trunk"):
        save_family(second.trunk, {"detail": second}, tmp_path)
    save_family(first.trunk, {"detail": RewardNetwork(first.trunk)}, tmp_path)
    save_family(second.trunk, {"color": second, "detail": RewardNetwork(second.trunk)}, tmp_path)  # all anew


def test_data_of_every_kind(workspace):
    assert sources.source("prompts.txt", name="prompts") == PROMPTS
    assert sources.source("assembly_toy:PROMPTS", name="prompts") == PROMPTS
    assert sources.source("pictures", name="images", resolution=16)[0].image.shape == (3, 16, 16)
    with pytest.raises(UserError, match=r"data\.images: assembly_toy:red has no length or no rows"):
        sources.source("assembly_toy:red", name="images")
    with pytest.raises(UserError, match="Sample rows where prompts are needed"):
        sources.prompts_of(sources.source("pictures", name="images"), "validation.prompts")


def test_levels_are_those_of_pictures_as_the_model_draws_them(workspace):
    write_pictures(workspace / "large", annotated=False, side=128)
    Image.open(workspace / "large/1.png").resize((96, 160)).save(
        workspace / "large/1.png"
    )  # of another shape
    rows = [{"prompt": "a", "chosen": f"{i}.png", "rejected": "0.png"} for i in range(len(PROMPTS))]
    (workspace / "large/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    method = {"kind": "unifl", "aesthetic": {"weight": 1.0, "num_steps": 3, "stop": [0, 1]}}
    rewards = {"side": "assembly_toy:side"}
    built = assemble(load_recipe(refl_recipe(method=method, rewards=rewards, levels="large")), device="cpu")
    assert built.recipe.method.aesthetic.levels == {"side": 32.0}


def test_validation_prompts_of_the_world_are_apart_from_training_and_final_ones():
    from unifl.assembly.figures import held_out_prompts
    from unifl.world.scenes import parse

    chosen = sources.source("world:validation", name="validation")
    assert not any(parse(prompt).held_out for prompt in list(chosen)[:100])
    assert all(parse(prompt).held_out for prompt in held_out_prompts(100))
    assert held_out_prompts(5) == held_out_prompts(100)[:5]


def test_judges():
    assert isinstance(resolve.judge("assembly_toy:Reader"), Reader)
    with pytest.raises(UserError, match="no judge 'gold'; there is validation"):
        resolve.judge("world:judges/gold")


def test_missing_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("unifl.world.assets.PIPELINE", tmp_path / "pipeline")
    with pytest.raises(
        UserError, match="weights of the embedded world are not here .*unifl world build FOLDER"
    ):
        world_names.pipeline("world:pipeline")


@pytest.mark.parametrize(
    ("text", "model", "name", "steps"),
    [
        ("runs/a", "runs/a", None, None),
        ("runs/a@4", "runs/a", None, 4),
        ("base=world:pipeline@20", "world:pipeline", "base", 20),
        ("my.model=./x y", "./x y", "my.model", None),
        ("org/name", "org/name", None, None),
    ],
)
def test_models_are_written_with_name_and_steps(text, model, name, steps):
    assert Spec.parse(text) == Spec(model, name, steps)


def test_a_lora_without_its_model_and_two_at_once(workspace):
    (workspace / "alone").mkdir()
    (workspace / "alone/pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="holds a LoRA without its model; give the model, and this by --lora"):
        locate_model("alone")
    found = locate_model("tiny", lora="alone")
    assert (found.source, found.lora, found.name) == ("tiny", "alone", "alone")


def test_a_run_without_a_model_yet_says_so(workspace):
    (workspace / "runs/new").mkdir(parents=True)
    (workspace / "runs/new/config.yaml").write_text((workspace / "refl.yaml").read_text())
    with pytest.raises(UserError, match="has written no model yet"):
        locate_model("runs/new")
