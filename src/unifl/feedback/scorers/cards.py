"""What to know of each scorer, by its name.

Licences are those of the weights as far as a page that could be read says; where that is silent, the licence of the
code is named as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from unifl.feedback.scorers.card import Card

_WITH_WORDS = "the whole prompt up to 77 tokens"
_TIDIED = "tidied up but for letters that were decoded wrongly"
_MPS = Card(
    title="MPS, overall",
    paper="Zhang et al., CVPR 2024 (Multi-dimensional Preference Score)",
    weights="MPS_overall_checkpoint.pth, linked in the README of github.com/Kwai-Kolors/MPS",
    licence="not stated for the weights when this was written; its code is MIT",
    scale="exp(logit scale) cos: the softmax over two pictures of one prompt is the probability of a preference",
    sees=f"the middle square at 224 px; {_WITH_WORDS}, of which those near the words of the condition count",
    biases="as PickScore and HPS v2, on whose kind of pictures it was trained",
)


def _of_condition(title: str) -> Card:
    """Another condition of MPS on the same weights."""
    return replace(
        _MPS,
        title=title,
        scale="as mps",
        sees="as mps, with the condition's own words",
        biases="the weights that were released were trained on overall preferences alone, so that this is the paper's "
        "condition on another model than the paper's",
    )


_CARDS: dict[str, Card] = {
    "clipscore": Card(
        title="CLIPScore",
        paper="Hessel et al., arXiv 2104.08718",
        weights="openai/clip-vit-base-patch32",
        licence="MIT (code and weights of openai/CLIP)",
        scale="2.5 max(cos, 0): 0.6 to 0.9 for pictures that fit their prompt",
        sees=f"the middle square at 224 px; {_WITH_WORDS}, after 'A photo depicts', {_TIDIED}",
        biases="objects more than their number, place or relation; blind to small things and to quality",
    ),
    "pickscore": Card(
        title="PickScore v1",
        paper="Kirstain et al., arXiv 2305.01569",
        weights="yuvalkirstain/PickScore_v1",
        licence="not stated on its page when this was written; its code is MIT; check before use",
        scale="exp(logit scale) cos: 19 to 23; the softmax over two pictures is the probability of a preference",
        sees=f"the middle square at 224 px; {_WITH_WORDS}",
        biases="saturated, detailed pictures in the taste of users of one web page; a model that was trained on "
        "Pick-a-Pic is judged by its teacher",
    ),
    "siglip": Card(
        title="SigLIP",
        paper="Zhai et al., arXiv 2303.15343",
        weights="google/siglip-so400m-patch14-384",
        licence="Apache-2.0",
        scale="a probability that picture and text belong together; small for most pairs, so compare, do not "
        "average",
        sees="the whole picture, squashed to a square; the prompt up to 64 tokens",
        biases="as CLIPScore, with finer vision; its probability is calibrated for captions of the web",
    ),
    "hpsv2": Card(
        title="HPS v2",
        paper="Wu et al., arXiv 2306.09341",
        weights="xswu/HPSv2/HPS_v2_compressed.pt",
        licence="Apache-2.0 (as its code)",
        scale="100 cos: 26 to 28; not comparable with v2.1",
        sees=f"the whole picture at 224 px on the longer side, black around; {_WITH_WORDS}, {_TIDIED}",
        biases="glossy, centred pictures; small differences of the number are large in preference",
    ),
    "hpsv2.1": Card(
        title="HPS v2.1",
        paper="Wu et al., arXiv 2306.09341, and its repository",
        weights="xswu/HPSv2/HPS_v2.1_compressed.pt",
        licence="Apache-2.0 (as its code)",
        scale="100 cos: 25 to 33; not comparable with v2",
        sees=f"the whole picture at 224 px on the longer side, black around; {_WITH_WORDS}, {_TIDIED}",
        biases="as HPS v2; models trained on it drift to high contrast",
    ),
    "aesthetic": Card(
        title="LAION aesthetic predictor v2",
        paper="github.com/christophschuhmann/improved-aesthetic-predictor",
        weights="sac+logos+ava1-l14-linearMSE.pth of that repository",
        licence="Apache-2.0 (as its code)",
        scale="1 to 10; Stable Diffusion 5.3 to 6.3",
        sees="the middle square at 224 px; no prompt",
        biases="paintings, shallow focus and strong colours, whatever was asked for",
    ),
    "imagereward": Card(
        title="ImageReward v1.0",
        paper="Xu et al., arXiv 2304.05977",
        weights="THUDM/ImageReward/ImageReward.pt",
        licence="Apache-2.0 (as its code)",
        scale="about N(0, 1) over pictures of Stable Diffusion 1: -2 to 2",
        sees="the middle square at 224 px; the first 35 tokens of the prompt, which cuts long prompts off",
        biases="what the prompt names being there at all; people and portraits; reads no further than 35 tokens",
    ),
    "mps": _MPS,
    "mps.aesthetics": _of_condition("MPS, aesthetics"),
    "mps.detail": _of_condition("MPS, the quality of details"),
    "mps.semantics": _of_condition("MPS, alignment"),
    "vqascore": Card(
        title="VQAScore",
        paper="Lin et al., arXiv 2404.01291",
        weights="Qwen/Qwen2.5-VL-7B-Instruct",
        licence="Apache-2.0 (Qwen2.5-VL-7B-Instruct)",
        scale="the probability of Yes, 0 to 1; near 0 or 1 for most pairs",
        sees="the whole picture in its own shape; the whole prompt; no gradient; in a process of its own",
        biases="says Yes rather than No; composition is read better than by CLIP, quality not at all. The paper's "
        "own model is CLIP-FlanT5, whose numbers differ",
    ),
    "hpsv3": Card(
        title="HPSv3",
        paper="Ma et al., arXiv 2508.03789",
        weights="MizzenAI/HPSv3/HPSv3.safetensors",
        licence="MIT (as its code)",
        scale="mu of a distribution, without bounds; about 10 for pictures of good models of 2024",
        sees="the whole picture at about 200,000 pixels; the whole prompt; no gradient; in a process of its own",
        biases="the taste of its annotators; cares for quality before small things of the prompt",
    ),
    "unifiedreward": Card(
        title="UnifiedReward 2.0",
        paper="Wang et al., arXiv 2503.05236",
        weights="CodeGoat24/UnifiedReward-2.0-qwen-7b",
        licence="MIT",
        scale="1 to 5: the mean of alignment, coherence and style, or the final score of version 1",
        sees="the whole picture in its own shape; the whole prompt; no gradient; in a process of its own",
        biases="few different numbers, so ties; asked in our words where no `question` is given, which its authors' "
        "figures were not",
    ),
    "chat": Card(
        title="A judge behind HTTP",
        paper="after Lin et al., arXiv 2404.01291 (shows) and Wang et al., arXiv 2503.05236 (rates)",
        weights="the model's name at the service",
        licence="of the model behind it",
        scale="1 to 5 (rates) or the probability of Yes (shows)",
        sees="the whole picture and prompt, sent to the address that is given as `base`; no gradient",
        biases="of the model behind it, which may change without notice",
    ),
    "colourfulness": Card(
        title="Colourfulness M3",
        paper="Hasler and Suesstrunk, Human Vision and Electronic Imaging VIII, 2003",
        weights="",
        licence="",
        scale="0 grey to 109 extremely colourful",
        sees="all pixels; no prompt",
        biases="none but what it says",
    ),
    "sharpness": Card(
        title="Variance of the Laplacian",
        paper="Pech-Pacheco et al., ICPR 2000",
        weights="",
        licence="",
        scale="from 0, depends on the resolution",
        sees="all pixels; no prompt",
        biases="noise and halos count",
    ),
    "jpeg_small": Card(
        title="Compressibility",
        paper="Black et al., arXiv 2305.13301",
        weights="",
        licence="",
        scale="minus kilobytes (1,000 bytes) of a JPEG of quality 95, as in DDPO's code",
        sees="all pixels; no prompt; no gradient",
        biases="smooth, empty pictures",
    ),
    "jpeg_large": Card(
        title="Incompressibility",
        paper="Black et al., arXiv 2305.13301",
        weights="",
        licence="",
        scale="kilobytes (1,000 bytes) of a JPEG of quality 95, as in DDPO's code",
        sees="all pixels; no prompt; no gradient",
        biases="noise",
    ),
}
SCORERS: Mapping[str, Card] = MappingProxyType(_CARDS)
"""All scorers."""
