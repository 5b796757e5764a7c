"""Pictures for scripted people: drawn in batches that an interruption leaves whole."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

from unifl.errors import UserError
from unifl.models import load_generator
from unifl.sampling import sample
from unifl.world import preference_drawing
from unifl.world.assets import PIPELINE, baselines, load_judge
from unifl.world.preference_drawing import draw_preferences
from unifl.world.preferences import write_preferences
from unifl.world.scenes import sample_prompts

pytestmark = pytest.mark.skipif(
    not (Path(PIPELINE) / "model_index.json").is_file(),
    reason="the weights of the embedded world are not in this checkout",
)
FEW = {"prompts": 3, "pictures": 2}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Four steps in place of twenty, three pictures at once: two batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference_drawing, "STEPS", 4)
        patch.setattr(preference_drawing, "AT_ONCE", 3)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "preferences"
    assert draw_preferences(folder, **FEW) is True
    return contents(folder)


def test_it_is_what_sampling_and_writing_give(whole, tmp_path):
    prompts = sample_prompts(3, seed=71, held_out=False)
    drawn = sample(
        load_generator(PIPELINE, roles=(), mixed_precision="bf16"),
        [prompt for prompt in prompts for _ in range(2)],
        seed=71,
        num_steps=4,
        guidance=2.0,
        spacing=baselines()["4"]["best"]["spacing"],
        batch_size=3,
    )
    write_preferences(
        tmp_path, load_judge("annotator"), drawn.reshape(3, 2, *drawn.shape[1:]), prompts, seed=71
    )
    assert contents(tmp_path) == {name: content for name, content in whole.items() if name != "drawing.json"}
    assert len(whole["metadata.jsonl"].splitlines()) == 3


def test_it_goes_on_where_it_was_stopped_to_the_same_result(whole, tmp_path, monkeypatch):
    def stop(done, total):
        assert total == 6
        raise KeyboardInterrupt

    folder = tmp_path / "preferences"
    with pytest.raises(KeyboardInterrupt):
        draw_preferences(folder, **FEW, progress=stop)
    assert not (folder / "metadata.jsonl").exists()
    drawn = []
    monkeypatch.setattr(
        preference_drawing,
        "sample",
        lambda *given, **how: drawn.append(how["indices"]) or sample(*given, **how),
    )
    assert draw_preferences(folder, **FEW) is True
    assert [list(indices) for indices in drawn] == [[3, 4, 5]]
    assert contents(folder) == whole
    monkeypatch.setattr(preference_drawing, "sample", lambda *_, **__: pytest.fail("drawn again"))
    assert draw_preferences(folder, **FEW) is False


def test_pictures_depend_on_the_seed_and_on_guidance(whole, tmp_path):
    for number, change in enumerate(({"seed": 5}, {"guidance": 1.0})):
        draw_preferences(tmp_path / f"{number}", **FEW, **change)
        other = contents(tmp_path / f"{number}")
        assert set(other) == set(whole)
        assert all(other[name] != whole[name] for name in whole if name.endswith(".png"))


def test_folders_are_not_mixed_up(whole, tmp_path):
    (tmp_path / "drawing.json").write_bytes(whole["drawing.json"])
    with pytest.raises(
        UserError,
        match=r"other settings \(prompts 3, pictures 2, guidance 2\.0, seed 71\); name another folder",
    ):
        draw_preferences(tmp_path, prompts=4, pictures=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match="holds data that this command did not write; name another folder"):
        draw_preferences(tmp_path / "other", **FEW)
    for change in ({"prompts": 0}, {"pictures": 1}):
        with pytest.raises(UserError, match="leave nothing to compare; take at least 1 and 2"):
            draw_preferences(tmp_path / "new", **(FEW | change))
    assert not (tmp_path / "new").exists()


def test_the_command_draws_and_is_done(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from unifl.cli import app
    from unifl.cli.world import preferences

    call = [
        "world",
        "preferences",
        str(tmp_path / "p"),
        "--prompts",
        "2",
        "--pictures",
        "2",
        "--guidance",
        "1",
    ]
    first, second = (CliRunner().invoke(app, call) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    assert "wrote" in first.output and "nothing to do" in second.output
    settings = json.loads((tmp_path / "p" / "drawing.json").read_text())
    assert settings == {"prompts": 2, "pictures": 2, "guidance": 1.0, "seed": 71}
    told = {name: p.default for name, p in inspect.signature(preferences).parameters.items()}
    used = {name: p.default for name, p in inspect.signature(draw_preferences).parameters.items()}
    assert all(told[name] == used[name] for name in ("prompts", "pictures", "guidance", "seed"))
    monkeypatch.setattr(
        preference_drawing, "draw_preferences", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    stopped = CliRunner().invoke(app, call)
    assert stopped.exit_code == 130 and "the same command goes on: unifl" in stopped.output


def test_people_prefer_what_the_judge_prefers(tmp_path):
    """The packaged annotator with its noise: of sharp pictures and the same in heavy noise, the sharp ones win."""
    torch.manual_seed(0)
    prompts = sample_prompts(24, seed=3, held_out=False)
    generator = load_generator(PIPELINE, roles=())
    sharp = sample(generator, prompts, num_steps=4, guidance=3.0)
    spoilt = (sharp + 0.3 * torch.randn_like(sharp)).clamp(0, 1)
    write_preferences(tmp_path, load_judge("annotator"), torch.stack([sharp, spoilt], 1), prompts, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert sum(row["label_0"] for row in rows) >= 18  # of 24; chance has 12, with a deviation of 2.4
