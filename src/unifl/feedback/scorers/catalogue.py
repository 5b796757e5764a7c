"""The scorers by name: how each is put together from published weights; `cards` says what they are.

    open_scorer("pickscore")                                  # by its hub name, or from the hub's cache
    open_scorer("hpsv2.1", weights="HPS_v2.1_compressed.pt", base="CLIP-ViT-H-14-laion2B-s32B-b79K")

In a recipe: `rewards: {pick: scorer:pickscore}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from unifl.disk import content_sha256
from unifl.errors import UserError, nearest
from unifl.feedback.base import Feedback, NetworkFeedback
from unifl.feedback.black_box import BlackBoxFeedback, JpegSize
from unifl.feedback.scorers import files
from unifl.feedback.scorers.aesthetic import Aesthetic
from unifl.feedback.scorers.card import Card
from unifl.feedback.scorers.cards import SCORERS
from unifl.feedback.scorers.chat import ChatJudge
from unifl.feedback.scorers.clip import ClipScorer, clip_score, hundredfold, logits, probability
from unifl.feedback.scorers.image_reward import ImageReward
from unifl.feedback.scorers.mps import Mps
from unifl.feedback.scorers.plain import Colourfulness, Sharpness
from unifl.feedback.scorers.questions import ANSWERS, RATES, SHOWS, read_question
from unifl.feedback.scorers.worker import WorkerProcess

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
_JUDGES = "unifl.feedback.scorers.judges"


class Scorer(NetworkFeedback):
    """A published scorer as a Feedback.

    Attributes:
        card: What to know of it.
    """

    card: Card


class AskedScorer(BlackBoxFeedback):
    """A judge that is asked in another process or behind HTTP, as a Feedback.

    Attributes:
        card: What to know of it.
        given: Everything that its scores depend on, as plain values.
    """

    card: Card
    given: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of its name and `given`, and of the files that those name; a model of the hub counts by name and revision."""
        seen = {key: content_sha256(value) or value for key, value in self.given.items()}
        return hashlib.sha256(json.dumps([self.name, seen], sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., Feedback]
    """From weights, base, revision, and the settings below by name."""
    weights: str = ""
    base: str = ""
    settings: tuple[str, ...] = ()


def open_scorer(
    kind: str,
    *,
    weights: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    **settings: Any,
) -> Feedback:
    """A scorer by its name.

    Args:
        kind: See `SCORERS`.
        weights: Where its weights are: a folder, a file (.safetensors, or .pt and .pth, of which nothing but tensors is
            read), a hub name, `hub name/file`, or an address with `#sha256=` behind. None is where they were
            published.
        base: The model whose config, tokenizer and image processor go with them, where those are not beside the
            weights: a folder or a hub name. None is the published one. For `chat`, the address of the service.
        revision: Of the hub repository.
        settings: Of judges that are asked: `question`, a text file with `{prompt}` in it; `timeout`, seconds for one
            call; `device` (auto) and `dtype` (auto), in their own process; `asks` (shows or answers; behind HTTP also
            rates) and `key_variable`, behind HTTP.

    Returns:
        A Feedback on pixels, frozen, in float32, with its `card`.

    Raises:
        UserError: No such scorer or setting, nothing to read, or weights that are missing or surplus.
    """
    if kind not in _ENTRIES:
        guess = nearest(kind, _ENTRIES)
        hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(_ENTRIES)}"
        raise UserError(f"there is no scorer {kind!r}; {hint}")
    entry = _ENTRIES[kind]
    if not entry.weights and (weights or base or revision) and kind != "chat":
        raise UserError(f"{kind} has no weights; leave out weights, base and revision")
    unknown = [key for key in settings if key not in entry.settings]
    if unknown:
        *others, last = ("weights", "base", "revision", *entry.settings)
        raise UserError(
            f"{kind} has no setting {unknown[0]!r}; its arguments are {', '.join(others)} and {last}"
        )
    return entry.build(weights or entry.weights, base or entry.base, revision, **settings)


def _scorer(network: nn.Module, kind: str, **settings: object) -> Scorer:
    found = Scorer(network, name=kind, **settings)  # type: ignore[arg-type]
    found.card = SCORERS[kind]
    return found


def _pickscore(weights: str, base: str, revision: str | None) -> Feedback:
    """Both towers in the layout of transformers; `base` has the tokenizer and the image processor."""
    model = files.load_two_towers(weights, "CLIPModel", revision)
    tokenizer, looking = files.tokenizer_and_looking(base or weights, revision if not base else None)
    return _scorer(ClipScorer(model, tokenizer, looking, formula=logits), "pickscore")


def _clipscore(weights: str, base: str, revision: str | None) -> Feedback:
    """As `_pickscore`, with pictures cut and prompts read as by OpenAI's code."""
    model = files.load_two_towers(weights, "CLIPModel", revision)
    tokenizer, looking = files.tokenizer_and_looking(base or weights, revision if not base else None)
    looking = replace(looking, half="even")
    network = ClipScorer(
        model, tokenizer, looking, formula=clip_score, prefix="A photo depicts ", tidies=True
    )
    return _scorer(network, "clipscore")


def _siglip(weights: str, base: str, revision: str | None) -> Feedback:
    model = files.load_two_towers(weights, "SiglipModel", revision)
    tokenizer, looking = files.tokenizer_and_looking(base or weights, revision if not base else None)
    network = ClipScorer(model, tokenizer, looking, formula=probability, length=64)
    return _scorer(network, "siglip", range=(0.0, 1.0))


def _hps(kind: str) -> Callable[[str, str, str | None], Feedback]:
    """Weights in the layout of open_clip; pictures are padded with black in place of being cut."""

    def build(weights: str, base: str, revision: str | None) -> Feedback:
        model = files.load_open_clip(weights, base, revision)
        tokenizer, looking = files.tokenizer_and_looking(base, None)
        network = ClipScorer(model, tokenizer, replace(looking, fit="pad"), formula=hundredfold, tidies=True)
        return _scorer(network, kind)

    return build


def _aesthetic(weights: str, base: str, revision: str | None) -> Feedback:
    state = files.read_state(weights, revision)
    model = files.load_two_towers(base, "CLIPModel", None)
    tokenizer, looking = files.tokenizer_and_looking(base, None)
    tower = ClipScorer(model, tokenizer, replace(looking, half="even"), formula=logits)
    return _scorer(Aesthetic(tower, state), "aesthetic", needs=frozenset())


def _image_reward(weights: str, base: str, revision: str | None) -> Feedback:
    state = files.read_state(weights, revision)
    network = ImageReward(state, files.read_tokenizer(base, None), weights=weights)
    return _scorer(network, "imagereward")


def _mps(kind: str) -> Callable[[str, str, str | None], Feedback]:
    """The condition is the end of the name; the authors saved the whole module."""

    def build(weights: str, base: str, revision: str | None) -> Feedback:
        if weights == _MPS_FILE and not Path(weights).is_file():
            raise UserError(
                f"there is no {weights} here, and its authors give it by a link to Google Drive alone, in the README "
                "of github.com/Kwai-Kolors/MPS; download it and give its path as `weights` "
                "(RE-N-Y/mpsv1/model.safetensors on the hub is a copy by somebody else)"
            )
        state = files.read_state(weights, revision, whole=True)
        tokenizer, looking = files.tokenizer_and_looking(base, None)
        network = Mps(
            files.empty_clip(weights, base),
            state,
            tokenizer,
            looking,
            condition=kind.partition(".")[2] or "overall",
            weights=weights,
            base=base,
        )
        return _scorer(network, kind)

    return build


# --- judges that are asked ------------------------------------------------------------------------------


def _in_process(
    kind: str,
    build: str,
    given: dict[str, Any],
    *,
    timeout: int | float = 600.0,
    range: tuple[float, float] | None = None,
) -> Feedback:
    """It starts when it is asked first; one that died is started again for one more try."""
    worker = WorkerProcess(build, given, timeout=timeout)
    found = AskedScorer(worker, name=kind, takes="numpy", timeout=None, retries=1, range=range)
    found.card = SCORERS[kind]
    found.given = {key: value for key, value in given.items() if key != "device"}
    return found


def _written(kind: str, function: str, question: str, range: tuple[float, float]) -> Callable[..., Feedback]:
    """A model of transformers that is asked in words."""

    def build(
        weights: str,
        base: str,
        revision: str | None,
        *,
        question: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        timeout: int | float = 600.0,
    ) -> Feedback:
        given = {
            "weights": weights,
            "base": base,
            "revision": revision,
            "device": device,
            "dtype": dtype,
            "question": read_question(question, default=asked),
        }
        return _in_process(kind, f"{_JUDGES}:{function}", given, timeout=timeout, range=range)

    asked = question
    return build


def _vqascore(
    weights: str, base: str, revision: str | None, *, asks: str = "shows", **settings: Any
) -> Feedback:
    asked = {"shows": SHOWS, "answers": ANSWERS}
    if asks not in asked:
        raise UserError(f"asks is {asks!r}; choose shows or answers")
    return _written("vqascore", "build_shows", asked[asks], (0.0, 1.0))(weights, base, revision, **settings)


def _hpsv3(
    weights: str,
    base: str,
    revision: str | None,
    *,
    question: str | None = None,
    device: str = "auto",
    timeout: int | float = 600.0,
) -> Feedback:
    if question is None:
        raise UserError(
            "hpsv3 was trained with one long instruction, which is its authors' and is not shipped here; take "
            "INSTRUCTION and prompt_with_special_token of hpsv3/dataset/data_collator_qwen.py (of hpsv3 on PyPI; "
            "docs/scorers.md has the commands) as a text file, with {prompt} for {text_prompt}, and give the file as "
            "`question`"
        )
    given = {
        "weights": weights,
        "base": base,
        "revision": revision,
        "device": device,
        "question": read_question(question, default="", needs=["<|Reward|>"]),
    }
    return _in_process("hpsv3", "unifl.feedback.scorers.hpsv3:load_hpsv3", given, timeout=timeout)


def _chat(
    weights: str,
    base: str,
    revision: str | None,
    *,
    asks: str = "rates",
    question: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    timeout: int | float = 120.0,
) -> Feedback:
    judge = ChatJudge(
        weights,
        base,
        asks=asks,
        question=None if question is None else read_question(question, default=""),
        key_variable=key_variable,
        timeout=timeout,
    )
    scale = (1.0, 5.0) if asks == "rates" else (0.0, 1.0)
    # it asks again by itself
    found = AskedScorer(judge, name="chat", takes="pil", timeout=None, retries=0, range=scale)
    found.card = SCORERS["chat"]
    found.given = {"model": judge.model, "base": judge.base, "asks": judge.asks, "question": judge.question}
    return found


_DDPO_QUALITY = 95  # of JPEGs, in rewards.py of github.com/kvablack/ddpo-pytorch
_IN_PROCESS = ("question", "device", "timeout")
_MPS_FILE = "MPS_overall_checkpoint.pth"
_AESTHETIC = (
    "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/"
    "6934dd81792f086e613a121dbce43082cb8be85e/sac%2Blogos%2Bava1-l14-linearMSE.pth"
    "#sha256=21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
)
_ENTRIES: dict[str, _Entry] = {
    "clipscore": _Entry(_clipscore, weights="openai/clip-vit-base-patch32"),
    "pickscore": _Entry(_pickscore, weights="yuvalkirstain/PickScore_v1", base=CLIP_H),
    "siglip": _Entry(_siglip, weights="google/siglip-so400m-patch14-384"),
    "hpsv2": _Entry(_hps("hpsv2"), weights="xswu/HPSv2/HPS_v2_compressed.pt", base=CLIP_H),
    "hpsv2.1": _Entry(_hps("hpsv2.1"), weights="xswu/HPSv2/HPS_v2.1_compressed.pt", base=CLIP_H),
    "aesthetic": _Entry(_aesthetic, weights=_AESTHETIC, base="openai/clip-vit-large-patch14"),
    "imagereward": _Entry(
        _image_reward, weights="THUDM/ImageReward/ImageReward.pt", base="google-bert/bert-base-uncased"
    ),
    **{
        kind: _Entry(_mps(kind), weights=_MPS_FILE, base=CLIP_H)
        for kind in ("mps", "mps.aesthetics", "mps.detail", "mps.semantics")
    },
    "vqascore": _Entry(_vqascore, weights=QWEN, settings=(*_IN_PROCESS, "dtype", "asks")),
    "hpsv3": _Entry(
        _hpsv3,
        weights="MizzenAI/HPSv3/HPSv3.safetensors",
        base="Qwen/Qwen2-VL-7B-Instruct",
        settings=_IN_PROCESS,
    ),
    "unifiedreward": _Entry(
        _written("unifiedreward", "build_rates", RATES, (1.0, 5.0)),
        weights="CodeGoat24/UnifiedReward-2.0-qwen-7b",
        settings=(*_IN_PROCESS, "dtype"),
    ),
    "chat": _Entry(_chat, settings=("asks", "question", "key_variable", "timeout")),
    "colourfulness": _Entry(lambda *_: Colourfulness()),
    "sharpness": _Entry(lambda *_: Sharpness()),
    "jpeg_small": _Entry(lambda *_: JpegSize(_DDPO_QUALITY, name="jpeg_small")),
    "jpeg_large": _Entry(lambda *_: JpegSize(_DDPO_QUALITY, name="jpeg_large", prefer="large")),
}
