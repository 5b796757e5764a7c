"""Small networks that judge pictures: rewards that read a prompt, and dense critics.

Rewards of one family share a trunk, and so do critics: one evaluation of the trunk serves every head that
looks at the same picture.  All take pictures in [0, 1], `(b, 3, h, w)`.
"""

from __future__ import annotations

import hashlib
import re
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unifl.errors import UserError

WORD_BUCKETS = 512
MAX_WORDS = 32


class _Block(nn.Module):
    """Two 3 x 3 convolutions with group norm, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm_first, self.norm_second = (nn.GroupNorm(8, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm_first(x)))
        return x + self.second(F.silu(self.norm_second(h)))


TRUNK_FILE = "trunk.safetensors"


class SharedTrunk(nn.Module):
    """A convolutional pyramid at 1/2, 1/4 and 1/8 of the resolution that remembers its last picture.

    While its weights are frozen, heads that ask for the same tensor get the same features (and the same
    graph), so several rewards or critics of a family cost one evaluation. The picture is forgotten when it is
    changed in place, and when a backward pass has used up the graph.
    """

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 80)) -> None:
        super().__init__()
        stages, previous = [], 3
        for width in widths:
            down = nn.Conv2d(previous, width, 3, stride=2, padding=1)
            stages.append(nn.Sequential(down, _Block(width)))
            previous = width
        self.stages = nn.ModuleList(stages)
        self.widths = widths
        self._memory: tuple[Tensor, tuple[int, bool, bool], list[Tensor]] | None = None

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Feature maps at 1/2, 1/4 and 1/8 of the resolution."""
        state = _state(images)
        if self._memory is not None and self._memory[0] is images and self._memory[1] == state:
            return self._memory[2]
        features, x = [], images * 2 - 1
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        frozen = not any(p.requires_grad for p in self.parameters())
        self._memory = None
        if frozen and state is not None:
            self._memory = (images, state, features)
            self._forget_after_backward(features)
        return features

    def forget(self) -> None:
        """Drop the remembered picture and its graph."""
        self._memory = None

    def _forget_after_backward(self, features: list[Tensor]) -> None:
        trunk = weakref.ref(self)  # the graph must not keep the trunk, which keeps the graph

        def passed(_gradient: Tensor) -> None:
            if (still_there := trunk()) is not None:
                still_there.forget()

        for feature in features:
            if feature.requires_grad:
                feature.register_hook(passed)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_memory": None}  # graphs cannot be copied


def _state(images: Tensor) -> tuple[int, bool, bool] | None:
    """What features depend on besides the tensor's identity; None where torch does not count changes in place."""
    if images.is_inference():
        return None
    return images._version, torch.is_grad_enabled(), images.requires_grad


def word_buckets(prompts: Sequence[str]) -> Tensor:
    """Prompts as hashed words, `(b, 32)`; 0 pads, so that no vocabulary is needed."""
    rows = torch.zeros(len(prompts), MAX_WORDS, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        for i, word in enumerate(re.findall(r"[a-z0-9]+", prompt.lower())[:MAX_WORDS]):
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            rows[b, i] = 1 + int.from_bytes(digest) % (WORD_BUCKETS - 1)
    return rows


class RewardNetwork(nn.Module):
    """One number per picture and prompt: words attend to the picture's cells, as in ImageReward (2304.05977).

    The picture's pooled features enter beside the words', so that axes which need no prompt are easy.
    """

    def __init__(self, trunk: SharedTrunk | None = None, text_width: int = 64) -> None:
        super().__init__()
        self.trunk = trunk or SharedTrunk()
        width = self.trunk.widths[-1]
        self.words = nn.Embedding(WORD_BUCKETS, text_width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(MAX_WORDS, text_width))
        self.reader = nn.TransformerEncoderLayer(
            text_width, 4, 2 * text_width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.cell_places = nn.Parameter(0.02 * torch.randn(64, text_width))
        self.cells = nn.Linear(width, text_width)
        self.look = nn.MultiheadAttention(text_width, 4, batch_first=True)
        self.judge = nn.Sequential(
            nn.Linear(2 * text_width + 2 * sum(self.trunk.widths), 128), nn.SiLU(), nn.Linear(128, 1)
        )

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Rewards, unbounded, higher is better."""
        return self.score(self.trunk(images), prompts)

    def score(self, features: list[Tensor], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """The reward from features of the trunk that are there already."""
        return self.judge(self.read(features, prompts))[:, 0]

    def read(self, features: list[Tensor], prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """What is judged: words, what they see in the picture, and the picture's pooled features."""
        grid = F.adaptive_avg_pool2d(features[-1], 8).flatten(2).transpose(1, 2)
        cells = self.cells(grid) + self.cell_places
        ids = word_buckets(prompts).to(grid.device)
        padding = ids == 0
        padding[:, 0] = False  # an empty prompt keeps one word to attend to
        text = self.reader(self.words(ids) + self.places, src_key_padding_mask=padding)
        seen = self.look(text, cells, cells, need_weights=False)[0]
        keep = (~padding)[..., None].float()
        joined = torch.cat([text, seen], -1)
        summary = (joined * keep).sum(1) / keep.sum(1)
        # Spread beside the mean: sharpness and contrast live in the second moment.
        pooled = [p for f in features for p in (f.mean((2, 3)), (f.var((2, 3)) + 1e-4).sqrt())]
        return torch.cat([summary, *pooled], 1)


class SoloNetwork(nn.Module):
    """Dense instance segmentation: a category and a mask for every cell of an S x S grid (SOLO, 1912.04488)."""

    def __init__(self, trunk: SharedTrunk, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        half, quarter, eighth = trunk.widths
        self.category = nn.Sequential(_Block(eighth), nn.Conv2d(eighth, num_classes, 1))
        # Masks need to know where a pixel is: coordinates join the features, as in CoordConv.
        self.lateral = nn.Conv2d(half + quarter + eighth + 2, 48, 1)
        self.masks = nn.Sequential(_Block(48), nn.Conv2d(48, 64, 1))

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b k s s"], Float[Tensor, "b c y x"]]:
        """Category logits and one mask per cell (row-major), at half the picture's resolution."""
        features = self.trunk(images)
        category = self.category(F.adaptive_avg_pool2d(features[2], 8))
        size = features[0].shape[-2:]
        wide = [F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in features]
        return category, self.masks(self.lateral(torch.cat([*wide, _coordinates(features[0])], 1)))


def _coordinates(like: Tensor) -> Tensor:
    y = torch.linspace(-1, 1, like.shape[-2], device=like.device, dtype=like.dtype)
    x = torch.linspace(-1, 1, like.shape[-1], device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None].expand(len(like), -1, -1, -1)


class SegmentationNetwork(nn.Module):
    """Semantic segmentation: a class for every pixel at half the picture's resolution."""

    def __init__(self, trunk: SharedTrunk, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.lateral = nn.Conv2d(sum(trunk.widths), 48, 1)
        self.classes = nn.Sequential(_Block(48), nn.Conv2d(48, num_classes, 1))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k y x"]:
        """Class logits."""
        features = self.trunk(images)
        size = features[0].shape[-2:]
        wide = [F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in features]
        return self.classes(self.lateral(torch.cat(wide, 1)))


class StyleNetwork(nn.Module):
    """Feature maps for Gram matrices; trained as a classifier of styles, whose logits it also gives."""

    def __init__(self, trunk: SharedTrunk, num_styles: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.styles = nn.Linear(2 * sum(trunk.widths), num_styles)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Feature maps from fine to coarse."""
        return self.trunk(images)

    def classify(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of the styles that the network was trained on."""
        features = self.trunk(images)
        pooled = [p for f in features for p in (f.mean((2, 3)), (f.var((2, 3)) + 1e-4).sqrt())]
        return self.styles(torch.cat(pooled, 1))


def save_family(trunk: SharedTrunk, heads: dict[str, nn.Module], folder: Path) -> None:
    """Write `trunk.safetensors` and one `<head>.safetensors` each, as fp16.

    Raises:
        UserError: The folder holds other heads, which were fitted on another trunk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in trunk.state_dict().items()}
    _require_same_family(weights, heads, folder)
    save_file(weights, folder / TRUNK_FILE)
    for name, head in heads.items():
        weights = {
            k: v.half().contiguous() for k, v in head.state_dict().items() if not k.startswith("trunk.")
        }
        save_file(weights, folder / f"{name}.safetensors")


def _require_same_family(trunk: dict[str, Tensor], heads: dict[str, nn.Module], folder: Path) -> None:
    others = sorted({file.stem for file in folder.glob("*.safetensors")} - {*heads, Path(TRUNK_FILE).stem})
    if not others:
        return
    there = load_file(folder / TRUNK_FILE) if (folder / TRUNK_FILE).is_file() else {}
    if there.keys() != trunk.keys() or any(not torch.equal(there[key], trunk[key]) for key in trunk):
        raise UserError(
            f"{folder} holds {', '.join(others)}, fitted on another trunk, which would be replaced; give each network "
            "that was fitted by itself a folder of its own, or fit all heads on one trunk and save them together"
        )


def load_trunk(folder: Path) -> SharedTrunk:
    """The trunk of a family, frozen."""
    trunk = SharedTrunk()
    trunk.load_state_dict(_weights(folder / TRUNK_FILE))
    return trunk.eval().requires_grad_(False)


def load_head(network: nn.Module, folder: Path, name: str) -> nn.Module:
    """Fill a network around a loaded trunk with the weights of one head, frozen."""
    weights = read_head(folder, name)
    own = {k: v for k, v in network.state_dict().items() if k.startswith("trunk.")}
    network.load_state_dict({**own, **weights})
    return network.eval().requires_grad_(False)


def read_head(folder: Path, name: str) -> dict[str, Tensor]:
    """The weights of one head as float32."""
    return _weights(folder / f"{name}.safetensors")


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"there are no weights at {path}; build them or name another folder")
    return {k: v.float() for k, v in load_file(path).items()}
