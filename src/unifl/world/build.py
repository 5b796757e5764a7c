"""`unifl world build`: everything that the package ships, from nothing, in resumable stages with fixed seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from unifl.errors import UserError, nearest
from unifl.models import Generator, load_generator, make_generator
from unifl.world import pipeline
from unifl.world.annotated import SceneImages
from unifl.world.annotator import label_pairs
from unifl.world.assets import ASSETS, load_rewards
from unifl.world.autoencoder_fit import fit_autoencoder
from unifl.world.baselines import as_json, best_setting, early_pictures
from unifl.world.critic_fit import fit_critics
from unifl.world.dataset import RenderedSet, reencoded_set, rendered_set
from unifl.world.denoiser_fit import encode_all, fit_denoiser
from unifl.world.fair_start import fair_start_numbers
from unifl.world.judge_fit import SEEDS, fit_judge
from unifl.world.judges import JudgeName, WorldJudge, load_judge_file, save_judge
from unifl.world.reward_fit import fit_rewards
from unifl.world.scenes import sample_prompts, sample_scenes
from unifl.world.trust import judge_numbers, pixel_ascent

_INSTALLED = "installed"


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Sizes of the build; the defaults made the packaged files."""

    pictures: int = 36_000
    judge_pictures: int = 16_000
    critic_pictures: int = 6_000
    autoencoder_steps: int = 4_500
    denoiser_steps: int = 16_200
    early_step: int = 5_200
    pale_step: int = 13_200
    judge_steps: int = 4_500
    judge_restart: int = 3_000
    critic_steps: int = 1_000
    reward_steps: int = 450
    pair_prompts: int = 2_000
    baseline_prompts: int = 200


@dataclass(frozen=True)
class Build:
    """A build under way in a folder."""

    folder: Path
    config: BuildConfig

    def reencode(self, images: Tensor) -> Tensor:
        """Pictures through the autoencoder and back, in [0, 1]."""
        vae = _autoencoder_of(self.folder)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(images * 2 - 1).latent_dist.mean
            return (vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    def train_set(self) -> RenderedSet:
        """What the pipeline is trained on."""
        return rendered_set(self.folder / "sets", "train", self.config.pictures, seed=1)

    def judge(self, name: JudgeName) -> WorldJudge:
        """A judge that is finished."""
        return load_judge_file(name, self.folder / "judges" / f"{name}.safetensors")

    def younger_generator(self) -> Generator:
        """The denoiser as it was half-way: its pictures are what people compared."""
        tokens = pipeline.tokenizer()
        model = nn.ModuleDict({"unet": pipeline.denoiser(), "text": pipeline.text_encoder(tokens)})
        model.load_state_dict(load_file(self.folder / "denoiser" / "early.safetensors"), strict=False)
        return make_generator(
            pipeline.assemble(_autoencoder_of(self.folder), model["text"], tokens, model["unet"]), roles=()
        )


@lru_cache(maxsize=1)
def _autoencoder_of(folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder / "autoencoder" / "final").eval().requires_grad_(False)


def _autoencoder(build: Build) -> None:
    data, folder, config = build.train_set(), build.folder / "autoencoder", build.config
    vae = fit_autoencoder(data, folder, steps=config.autoencoder_steps)
    vae.save_pretrained(folder / "final")


def _denoiser(build: Build) -> None:
    data, config = build.train_set(), build.config
    latents = encode_all(_autoencoder_of(build.folder), data, build.folder / "sets" / "latents.npy")
    model = fit_denoiser(
        latents,
        data,
        build.folder / "denoiser",
        steps=config.denoiser_steps,
        early=config.early_step,
        pale_from=config.pale_step,
    )
    pipe = pipeline.assemble(
        _autoencoder_of(build.folder), model["text"], pipeline.tokenizer(), model["unet"]
    )
    pipe.to(torch.float16).save_pretrained(build.folder / "pipeline")


def _judge(build: Build, name: JudgeName) -> None:
    seed, number = SEEDS[name], build.config.judge_pictures
    data = rendered_set(build.folder / "sets", name, number, seed=seed)
    scenes = sample_scenes(number, seed=seed, held_out=False)
    coded = reencoded_set(data, build.folder / "sets" / f"{name}-reencoded.npy", build.reencode)
    network = fit_judge(
        name,
        (data, coded),
        scenes,
        build.folder / "judges",
        steps=build.config.judge_steps,
        restart=build.config.judge_restart,
    )
    save_judge(network, build.folder / "judges" / f"{name}.safetensors")


def _critics(build: Build) -> None:
    data = SceneImages.sample(build.config.critic_pictures, seed=31)
    fit_critics(data, build.folder / "critics", steps=build.config.critic_steps, reencode=build.reencode)


def _rewards(build: Build) -> None:
    """Pairs of the younger model's pictures, a quarter of them against a real one, judged by the annotator."""
    prompts = sample_prompts(build.config.pair_prompts, seed=41, held_out=False)
    path = build.folder / "rewards" / "pictures.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(early_pictures(build.younger_generator(), prompts, seed=41), path)
    first, second = torch.load(path, weights_only=True)
    second[::4] = build.reencode(SceneImages.of_prompts(prompts[::4], seed=42).images)
    pairs = label_pairs(build.judge("annotator"), first, second, prompts, seed=41)
    fit_rewards(pairs, build.folder / "rewards", steps=build.config.reward_steps)


def _baselines(build: Build) -> None:
    generator = load_generator(build.folder / "pipeline", roles=())
    judge = build.judge("validation")
    prompts = sample_prompts(build.config.baseline_prompts, seed=51, held_out=False)
    record = {
        str(steps): as_json(
            *best_setting(generator, judge, prompts, num_steps=steps, seed=51, progress=print)
        )
        for steps in (4, 20)
    }
    (build.folder / "baselines.json").write_text(json.dumps(record, indent=1))


def _fair_start(build: Build) -> None:
    best = json.loads((build.folder / "baselines.json").read_text())["20"]["best"]
    numbers = fair_start_numbers(
        load_generator(build.folder / "pipeline", roles=()),
        build.judge("gold"),
        guidance=best["guidance"],
        spacing=best["spacing"],
    )
    (build.folder / "fair_start.json").write_text(json.dumps(numbers, indent=1))


def _trust(build: Build) -> None:
    """The figures of the docs page about the judges."""
    names: tuple[JudgeName, ...] = ("annotator", "validation", "gold")
    record: dict[str, object] = {name: judge_numbers(build.judge(name), build.reencode) for name in names}
    record["pixel_ascent"] = _ascent_numbers(build)
    (build.folder / "trust.json").write_text(json.dumps(record, indent=1))


def _ascent_numbers(build: Build, number: int = 60) -> dict[str, dict[str, float]]:
    data = SceneImages.sample(number, seed=78, held_out=True)
    gold = build.judge("gold")
    before = gold(data.images, data.prompts)
    out = {}
    for axis, reward in load_rewards(build.folder / "rewards" / "final").items():
        climbed = pixel_ascent(reward, data.images, data.prompts)
        after = gold(climbed, data.prompts)
        key = "quality" if axis == "global" else axis
        with torch.no_grad():
            gain = float((reward(climbed, data.prompts) - reward(data.images, data.prompts)).mean())
        out[axis] = {
            "reward_change": gain,
            "gold_change": float((after[key] - before[key]).mean()),
            "gold_quality_change": float((after["quality"] - before["quality"]).mean()),
        }
    return out


def _install(build: Build) -> None:
    """Copy what the package ships into it."""
    for name in ("annotator", "validation", "gold"):
        _copy(build.folder / "judges" / f"{name}.safetensors", ASSETS / "judges" / f"{name}.safetensors")
    for name in ("pipeline", "rewards/final", "critics/final"):
        shutil.copytree(build.folder / name, ASSETS / name.removesuffix("/final"), dirs_exist_ok=True)
    for name in ("baselines.json", "fair_start.json", "trust.json"):
        _copy(build.folder / name, ASSETS / name)
    for config in ASSETS.glob("pipeline/*/config.json"):  # diffusers notes the folder that a part came from
        kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")
    (build.folder / _INSTALLED).touch()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


STAGES: dict[str, tuple[Callable[[Build], None], str]] = {
    "autoencoder": (_autoencoder, "autoencoder/final/config.json"),
    "denoiser": (_denoiser, "pipeline/model_index.json"),
    "annotator": (lambda build: _judge(build, "annotator"), "judges/annotator.safetensors"),
    "validation": (lambda build: _judge(build, "validation"), "judges/validation.safetensors"),
    "gold": (lambda build: _judge(build, "gold"), "judges/gold.safetensors"),
    "critics": (_critics, "critics/final/trunk.safetensors"),
    "rewards": (_rewards, "rewards/final/levels.json"),
    "baselines": (_baselines, "baselines.json"),
    "fair_start": (_fair_start, "fair_start.json"),
    "trust": (_trust, "trust.json"),
    "install": (_install, _INSTALLED),
}


def build_world(folder: Path, config: BuildConfig | None = None, stages: Sequence[str] | None = None) -> None:
    """Run the stages that have not been run, in order; each continues where it was interrupted.

    Args:
        stages: a part of them, for spreading over machines; all by default.

    Raises:
        UserError: a stage that does not exist.
    """
    build = Build(folder, config or BuildConfig())
    for name in stages or STAGES:
        if name not in STAGES:
            raise UserError(f"there is no stage {name!r}; did you mean {nearest(name, STAGES)!r}?")
        run, product = STAGES[name]
        if not (folder / product).exists():
            print(f"[{name}]", flush=True)
            run(build)
