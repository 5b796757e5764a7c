"""What lies behind a name: equal content is known again, replaced content is not."""

from __future__ import annotations

import pytest
import torch

from unifl.assembly import resolve
from unifl.assembly.fingerprint import fingerprint
from unifl.assembly.part import Part
from unifl.data.suites import Entry, Question, Suite
from unifl.evaluation import GoldJudge
from unifl.evaluation.dpg import QuestionGraph
from unifl.feedback import NetworkFeedback, as_feedback
from unifl.feedback.networks import RewardNetwork, save_family
from unifl.feedback.preprocessing import Preprocessing
from unifl.feedback.scorers import open_scorer
from unifl.feedback.scorers.looking import Looking
from unifl.world.judges import JudgeNetwork, WorldJudge


def seeded(seed, kind, *arguments):
    torch.manual_seed(seed)
    return kind(*arguments)


def network(seed=0):
    return seeded(seed, RewardNetwork)


def test_it_is_of_the_weights_and_not_of_the_name_or_place(tmp_path):
    first, same, other = (NetworkFeedback(network(seed), name=name) for seed, name in enumerate("aab"))
    same.network.load_state_dict(first.network.state_dict())
    assert fingerprint(first, "a") == fingerprint(same, "b") != fingerprint(other, "a")
    assert fingerprint(NetworkFeedback(RewardNetwork().bfloat16(), name="x"), "a")
    for folder in ("here", "there"):
        save_family(first.network.trunk, {"liked": first.network}, tmp_path / folder)
    places = [str(tmp_path / folder / "liked") for folder in ("here", "there")]
    found = [fingerprint(resolve.feedback(place, name="x"), place) for place in places]
    save_family(other.network.trunk, {"liked": other.network}, tmp_path / "here")
    assert found[0] == found[1] != fingerprint(resolve.feedback(places[0], name="x"), places[0])


def test_networks_are_found_in_judges_and_behind_functions():
    class Reader:
        def __init__(self, seed):
            self.seen, self._hidden = [1], network(seed)

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3))

    def guarded(seed):
        return GoldJudge(WorldJudge(seeded(seed, JudgeNetwork, "gold"), "gold"))

    for wrapped in (Reader, lambda seed: as_feedback(Reader(seed)), guarded):
        first, again, other = (fingerprint(wrapped(seed), "mine") for seed in (0, 0, 1))
        assert first == again != other


def test_how_pictures_are_shown_counts_wherever_in_a_network_it_stands():
    def shown(kind, **settings):
        inner = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(inner.weight), torch.nn.init.zeros_(inner.bias)
        setattr(inner, "looking" if kind is Looking else "preprocessing", kind(**settings))
        return fingerprint(NetworkFeedback(torch.nn.Sequential(inner), name="x"), "mine")

    crop, pad, large = (shown(Looking, size=8), shown(Looking, size=8, fit="pad"), shown(Looking, size=16))
    assert crop == shown(Looking, size=8) and len({crop, pad, large}) == 3
    here, there = (shown(Preprocessing, model=place, size=64) for place in ("here", "there"))
    assert here == there != shown(Preprocessing, model="here", size=32)


def test_code_arguments_and_the_files_that_these_name_belong_to_what_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    found = set()
    for version, text in enumerate(("return images.mean((1, 2, 3))", "return images.amax((1, 2, 3))")):
        (tmp_path / f"rewards_{version}.py").write_text(f"def mine(images, prompts):\n    {text}\n")
        name = f"rewards_{version}:mine"
        found.add(fingerprint(resolve.feedback(name, name="mine"), name))
    assert len(found) == 2
    table = tmp_path / "table.json"
    for factor, words in ((1, "a"), (2, "a"), (2, "b")):
        table.write_text(words)
        part = Part(path="rewards_0:mine", kwargs={"factor": factor, "table": str(table)})
        found.add(fingerprint(as_feedback(lambda images, prompts: images), part))
    assert len(found) == 5


def test_scorers_without_weights_or_with_several_conditions_are_told_apart_by_their_names():
    small, large = (open_scorer(name) for name in ("jpeg_small", "jpeg_large"))
    assert fingerprint(small, "jpeg_small") != fingerprint(large, "jpeg_large")
    assert fingerprint(small, "jpeg_small") == fingerprint(small, "scorer:jpeg_small")
    mps = NetworkFeedback(network(), name="mps")
    assert fingerprint(mps, "scorer:mps.detail") != fingerprint(mps, "scorer:mps.semantics")


@pytest.mark.parametrize("changed", ["weights.safetensors", "question.txt", "deeper/config.json"])
def test_a_judge_in_another_process_counts_by_the_files_that_it_is_given(tmp_path, changed):
    def opened(place=tmp_path, **settings):
        return open_scorer(
            "vqascore",
            weights=str(place / "model"),
            base=str(place / "model"),
            question=str(place / "question.txt"),
            **settings,
        )

    (tmp_path / "model/deeper").mkdir(parents=True)
    for name in ("model/weights.safetensors", "model/deeper/config.json", "question.txt"):
        (tmp_path / name).write_text("{prompt}")
    known = fingerprint(opened(), "scorer:vqascore")
    assert known == fingerprint(opened(device="cpu", timeout=5), "scorer:vqascore")
    (next(tmp_path.rglob(changed))).write_text("{prompt}?")
    assert fingerprint(opened(), "scorer:vqascore") != known


def test_a_judge_behind_a_service_counts_by_what_it_is_asked():
    def opened(**settings):
        given = {"weights": "m", "base": "http://localhost:1/v1"} | settings
        return fingerprint(open_scorer("chat", **given), "scorer:chat")

    assert opened() == opened(timeout=3) and len({opened(), opened(asks="shows"), opened(weights="n")}) == 3


class Answers:
    """Somebody in another process, who says which model it is."""

    name, space, differentiable, needs, range = "known", "pixel", False, frozenset({"prompt"}), (0.0, 1.0)

    def __init__(self, said):
        self.fingerprint = said

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


def test_of_questions_these_count_and_who_answers_them():
    def asks(text, answers):
        suite = Suite("dpg", (Entry("a cat", questions=(Question(1, text),)),))
        return fingerprint(QuestionGraph(suite, answers), "mine")

    one, two = Answers("one"), Answers("two")
    assert asks("cat?", one) == asks("cat?", Answers("one"))
    assert len({asks("cat?", one), asks("dog?", one), asks("cat?", two)}) == 3
