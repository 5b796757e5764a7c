from __future__ import annotations

import diffusers
import pytest
import torch
import yaml

from unifl.errors import UserError
from unifl.models import (
    LoraTraining,
    Sampling,
    load_generator,
    make_generator,
    model_card,
    push,
    save_lora,
    save_pipeline,
)
from unifl.testing import tiny_folder, tiny_pipeline

SAMPLING = Sampling(steps=4, guidance=1.5, spacing="trailing")


def header(card):
    return yaml.safe_load(card.read_text().split("---\n")[1])


def test_header_and_sampling_of_a_lora(tmp_path):
    generator = make_generator(tiny_pipeline("sdxl"), train=LoraTraining(rank=2), source="stabilityai/sdxl")
    card = model_card(
        tmp_path,
        generator,
        kind="lora",
        sampling=SAMPLING,
        license="openrail++",
        title="Sharp",
        summary="By hand.",
    )
    assert card.name == "README.md"
    top = header(card)
    assert top["base_model"] == "stabilityai/sdxl"
    assert top["library_name"] == "diffusers" and top["license"] == "openrail++"
    assert {"text-to-image", "lora", "stable-diffusion-xl"} <= set(top["tags"])
    text = card.read_text()
    assert "# Sharp" in text and "By hand." in text
    assert "| 4 | 1.5 | DDIMScheduler | trailing | 32 x 32 |" in text
    assert 'StableDiffusionXLPipeline.from_pretrained("stabilityai/sdxl")' in text


def test_a_local_source_is_not_published_but_its_card_is_read(tmp_path):
    base = tiny_folder("sd15", tmp_path / "private-place")
    generator = load_generator(base, train=LoraTraining(rank=2))
    top = header(model_card(tmp_path / "a", generator, kind="pipeline", sampling=SAMPLING))
    assert "base_model" not in top and "license" not in top
    assert "private-place" not in (tmp_path / "a" / "README.md").read_text()
    (base / "README.md").write_text("---\nbase_model: someone/model\nlicense: mit\n---\ntext")
    top = header(model_card(tmp_path / "b", generator, kind="pipeline", sampling=SAMPLING))
    assert top["base_model"] == "someone/model" and top["license"] == "mit"


def test_the_card_says_where_diffusers_takes_other_steps(tmp_path):
    generator = make_generator(tiny_pipeline("sd15"))

    def text(folder, steps, spacing):
        how = Sampling(steps=steps, guidance=1.0, spacing=spacing)
        return model_card(tmp_path / folder, generator, kind="pipeline", sampling=how).read_text()

    assert "6 does not divide 1000" in text("a", 6, "trailing")
    assert "does not divide" not in text("b", 5, "trailing") + text("c", 6, "leading")


@pytest.mark.parametrize("kind", ["pipeline", "lora"])
def test_the_example_runs_and_draws_the_trained_model(kind, tmp_path):
    base = tiny_folder("sd15", tmp_path / "base")
    generator = load_generator(base, train=LoraTraining(rank=2))
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.fill_(0.1)
    (save_pipeline if kind == "pipeline" else save_lora)(generator, tmp_path / "out")
    text = model_card(tmp_path / "out", generator, kind=kind, sampling=SAMPLING).read_text()
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/this/folder", str(tmp_path / "out")).replace("path/to/base-model", str(base))
    scope = {}
    exec(code, scope)
    assert isinstance(scope["pipe"].scheduler, diffusers.DDIMScheduler)
    assert scope["pipe"].scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert scope["image"].size == (32, 32)


def test_push_uploads_the_folder_and_nothing_else(tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options["private"]))

        def upload_folder(self, **options):
            calls.append(("upload", options["repo_id"], options["folder_path"]))
            return "address"

    monkeypatch.setattr("unifl.models.card.HfApi", Api)
    (tmp_path / "README.md").write_text("card")
    assert push(tmp_path, "me/model", private=False) == "address"
    assert calls == [("create", "me/model", False), ("upload", "me/model", str(tmp_path))]


def test_push_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        push(tmp_path / "missing", "me/model")
    with pytest.raises(UserError, match=r"no README\.md"):
        push(tmp_path, "me/model")
    (tmp_path / "README.md").write_text("card")
    with pytest.raises(UserError, match="could not be pushed to me/model"):
        push(tmp_path, "me/model")  # offline
