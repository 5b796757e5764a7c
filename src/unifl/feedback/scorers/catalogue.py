"""The scorers by name: what they are, and how each is put together from published weights.

    open_scorer("pickscore")                                  # by its hub name, or from the hub's cache
    open_scorer("hpsv2.1", weights="HPS_v2.1_compressed.pt", base="CLIP-ViT-H-14-laion2B-s32B-b79K")

In a recipe: `rewards: {pick: scorer:pickscore}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from unifl.errors import UserError, nearest
from unifl.feedback.base import Feedback, NetworkFeedback
from unifl.feedback.black_box import JpegSize
from unifl.feedback.scorers import files
from unifl.feedback.scorers.aesthetic import Aesthetic
from unifl.feedback.scorers.card import Card
from unifl.feedback.scorers.clip import ClipScorer, Formula, clip_score, hundredfold, logits, probability
from unifl.feedback.scorers.plain import Colourfulness, Sharpness

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Scorer(NetworkFeedback):
    """A published scorer as a Feedback.

    Attributes:
        card: What to know of it.
    """

    card: Card


@dataclass(frozen=True)
class _Entry:
    card: Card
    build: Callable[[str, str, str | None], Feedback]
    """From weights, base and revision."""
    weights: str = ""
    base: str = ""


def open_scorer(
    kind: str, *, weights: str | None = None, base: str | None = None, revision: str | None = None
) -> Feedback:
    """A scorer by its name.

    Args:
        kind: See `SCORERS`.
        weights: Where its weights are: a folder, a file (.safetensors, or .pt and .pth, of which nothing but tensors is
            read), a hub name, or `hub name/file`. None is where they were published.
        base: The model whose config, tokenizer and image processor go with them, where those are not beside the
            weights: a folder or a hub name. None is the published one.
        revision: Of the hub repository.

    Returns:
        A Feedback on pixels, frozen, in float32, with its `card`.

    Raises:
        UserError: No such scorer, nothing to read, or weights that are missing or surplus.
    """
    if kind not in _ENTRIES:
        guess = nearest(kind, _ENTRIES)
        hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(_ENTRIES)}"
        raise UserError(f"there is no scorer {kind!r}; {hint}")
    entry = _ENTRIES[kind]
    if not entry.weights and (weights or base):
        raise UserError(f"{kind} has no weights; leave out weights and base")
    return entry.build(weights or entry.weights, base or entry.base, revision)


def _scorer(network: ClipScorer | Aesthetic, kind: str, **settings: object) -> Scorer:
    found = Scorer(network, name=kind, **settings)  # type: ignore[arg-type]
    found.card = SCORERS[kind]
    return found


def _clip(kind: str, formula: Formula, prefix: str = "") -> Callable[[str, str, str | None], Feedback]:
    """Both towers in the layout of transformers; `base` has the tokenizer and the image processor."""

    def build(weights: str, base: str, revision: str | None) -> Feedback:
        model = files.load_two_towers(weights, "CLIPModel", revision)
        tokenizer, looking = files.tokenizer_and_looking(base or weights, revision if not base else None)
        network = ClipScorer(model, tokenizer, looking, formula=formula, prefix=prefix)
        return _scorer(network, kind)

    return build


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
        network = ClipScorer(model, tokenizer, replace(looking, fit="pad"), formula=hundredfold)
        return _scorer(network, kind)

    return build


def _aesthetic(weights: str, base: str, revision: str | None) -> Feedback:
    state = files.read_state(weights, revision)
    model = files.load_two_towers(base, "CLIPModel", None)
    tokenizer, looking = files.tokenizer_and_looking(base, None)
    tower = ClipScorer(model, tokenizer, looking, formula=logits)
    return _scorer(Aesthetic(tower, state), "aesthetic", needs=frozenset())


_WITH_WORDS = "the whole prompt up to 77 tokens"
_ENTRIES: dict[str, _Entry] = {
    "clipscore": _Entry(
        Card(
            title="CLIPScore",
            paper="Hessel et al., arXiv 2104.08718",
            weights="openai/clip-vit-base-patch32",
            licence="MIT (code and weights of openai/CLIP)",
            scale="2.5 max(cos, 0): 0.6 to 0.9 for pictures that fit their prompt",
            sees=f"the middle square at 224 px; {_WITH_WORDS}, after 'A photo depicts'",
            biases="objects more than their number, place or relation; blind to small things and to quality",
        ),
        _clip("clipscore", clip_score, prefix="A photo depicts "),
        weights="openai/clip-vit-base-patch32",
    ),
    "pickscore": _Entry(
        Card(
            title="PickScore v1",
            paper="Kirstain et al., arXiv 2305.01569",
            weights="yuvalkirstain/PickScore_v1",
            licence="not stated on its page when this was written; check before use",
            scale="exp(logit scale) cos: 19 to 23; the softmax over two pictures is the probability of a preference",
            sees=f"the middle square at 224 px; {_WITH_WORDS}",
            biases="saturated, detailed pictures in the taste of users of one web page; a model that was trained on "
            "Pick-a-Pic is judged by its teacher",
        ),
        _clip("pickscore", logits),
        weights="yuvalkirstain/PickScore_v1",
        base=CLIP_H,
    ),
    "siglip": _Entry(
        Card(
            title="SigLIP",
            paper="Zhai et al., arXiv 2303.15343",
            weights="google/siglip-so400m-patch14-384",
            licence="Apache-2.0",
            scale="a probability that picture and text belong together; small for most pairs, so compare, do not "
            "average",
            sees="the whole picture, squashed to a square; the prompt up to 64 tokens",
            biases="as CLIPScore, with finer vision; its probability is calibrated for captions of the web",
        ),
        _siglip,
        weights="google/siglip-so400m-patch14-384",
    ),
    "hpsv2": _Entry(
        Card(
            title="HPS v2",
            paper="Wu et al., arXiv 2306.09341",
            weights="xswu/HPSv2/HPS_v2_compressed.pt",
            licence="Apache-2.0 (as its code)",
            scale="100 cos: 26 to 28; not comparable with v2.1",
            sees=f"the whole picture at 224 px on the longer side, black around; {_WITH_WORDS}",
            biases="glossy, centred pictures; small differences of the number are large in preference",
        ),
        _hps("hpsv2"),
        weights="xswu/HPSv2/HPS_v2_compressed.pt",
        base=CLIP_H,
    ),
    "hpsv2.1": _Entry(
        Card(
            title="HPS v2.1",
            paper="Wu et al., arXiv 2306.09341, and its repository",
            weights="xswu/HPSv2/HPS_v2.1_compressed.pt",
            licence="Apache-2.0 (as its code)",
            scale="100 cos: 25 to 33; not comparable with v2",
            sees=f"the whole picture at 224 px on the longer side, black around; {_WITH_WORDS}",
            biases="as HPS v2; models trained on it drift to high contrast",
        ),
        _hps("hpsv2.1"),
        weights="xswu/HPSv2/HPS_v2.1_compressed.pt",
        base=CLIP_H,
    ),
    "aesthetic": _Entry(
        Card(
            title="LAION aesthetic predictor v2",
            paper="github.com/christophschuhmann/improved-aesthetic-predictor",
            weights="sac+logos+ava1-l14-linearMSE.pth of its repository",
            licence="Apache-2.0 (as its code)",
            scale="1 to 10; Stable Diffusion 5.3 to 6.3",
            sees="the middle square at 224 px; no prompt",
            biases="paintings, shallow focus and strong colours, whatever was asked for",
        ),
        _aesthetic,
        weights="sac+logos+ava1-l14-linearMSE.pth",
        base="openai/clip-vit-large-patch14",
    ),
    "colourfulness": _Entry(
        Card(
            title="Colourfulness M3",
            paper="Hasler and Suesstrunk, Human Vision and Electronic Imaging VIII, 2003",
            weights="",
            licence="",
            scale="0 grey to 109 extremely colourful",
            sees="all pixels; no prompt",
            biases="none but what it says",
        ),
        lambda *_: Colourfulness(),
    ),
    "sharpness": _Entry(
        Card(
            title="Variance of the Laplacian",
            paper="Pech-Pacheco et al., ICPR 2000",
            weights="",
            licence="",
            scale="from 0, depends on the resolution",
            sees="all pixels; no prompt",
            biases="noise and halos count",
        ),
        lambda *_: Sharpness(),
    ),
    "jpeg_small": _Entry(
        Card(
            title="Compressibility",
            paper="Black et al., arXiv 2305.13301",
            weights="",
            licence="",
            scale="minus kilobytes of a JPEG",
            sees="all pixels; no prompt; no gradient",
            biases="smooth, empty pictures",
        ),
        lambda *_: JpegSize(name="jpeg_small"),
    ),
    "jpeg_large": _Entry(
        Card(
            title="Incompressibility",
            paper="Black et al., arXiv 2305.13301",
            weights="",
            licence="",
            scale="kilobytes of a JPEG",
            sees="all pixels; no prompt; no gradient",
            biases="noise",
        ),
        lambda *_: JpegSize(name="jpeg_large", prefer="large"),
    ),
}
SCORERS: Mapping[str, Card] = MappingProxyType({kind: entry.card for kind, entry in _ENTRIES.items()})
"""All scorers, with what to know of each."""
