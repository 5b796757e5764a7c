"""Model cards, written without a network, and publishing, only when asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import HfApi

from unifl.errors import UserError
from unifl.models.denoiser import UNET
from unifl.models.generator import Generator
from unifl.models.load import looks_like_path
from unifl.models.save import KOHYA_FILE
from unifl.models.schedule import FlowSchedule
from unifl.models.user import UserRoles
from unifl.models.user_files import USER_FILE
from unifl.process import ConsistencySampler, Spacing


@dataclass(frozen=True)
class Sampling:
    """How a model is meant to be sampled.

    Attributes:
        steps: Network evaluations per picture.
        guidance: w of u + w (c - u), diffusers' guidance_scale; 1 is none.
        spacing: Timestep spacing of the DDIM scheduler.
        consistency: How a consistency model is sampled, in place of DDIM.
    """

    steps: int
    guidance: int | float
    spacing: Spacing
    consistency: ConsistencySampler | None = None

    @property
    def scheduler(self) -> str:
        """Class of the diffusers scheduler."""
        return "DDIMScheduler" if self.consistency is None else f"{self.consistency.kind.upper()}Scheduler"

    @property
    def arguments(self) -> str:
        """Of the scheduler, beside the config of the one that is there."""
        if self.consistency is None:
            return f'timestep_spacing="{self.spacing}", set_alpha_to_one=True, clip_sample=False'
        return f"original_inference_steps={self.consistency.origin_steps}, clip_sample=False"

    @property
    def call(self) -> str:
        """Arguments of the pipeline's call."""
        asked = f"num_inference_steps={self.steps}, guidance_scale={self.guidance:g}"
        if self.consistency is not None and self.consistency.kind == "tcd":
            asked += f", eta={self.consistency.gamma:g}"
        return asked


def model_card(
    folder: str | Path,
    generator: Generator,
    *,
    kind: Literal["pipeline", "lora", "user"],
    sampling: Sampling,
    title: str = "",
    base_model: str | None = None,
    license: str | None = None,
    summary: str = "",
    prompt: str = "a photo of a cat",
) -> Path:
    """Writes README.md with the YAML header that model hubs read.

    Args:
        folder: Where `save_pipeline`, `save_lora` or `save_user_adapter` has written.
        generator: The trained model.
        kind: What the folder holds.
        sampling: Steps, guidance and spacing to use, as measured for this model.
        title: Headline; the folder's name when empty.
        base_model: Hub name of the model that training started from; None takes the source of the generator when
            that was a hub name, or what the card of the source folder says.
        license: Such as "openrail++"; None takes that of the source folder's card, if it has one.
        summary: How it was trained, in Markdown.
        prompt: Of the usage example.

    Returns:
        The path of the card.
    """
    inherited = _header_of(Path(generator.source) / "README.md") if generator.source else {}
    if base_model is None:
        local = not generator.source or looks_like_path(generator.source) or Path(generator.source).exists()
        base_model = inherited.get("base_model") if local else generator.source
    header: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if base_model:
        header["base_model"] = base_model
    if license or inherited.get("license"):
        header["license"] = license or inherited["license"]
    tags = {"pipeline": [], "lora": ["lora"], "user": ["ip-adapter"]}[kind]
    header["tags"] = ["text-to-image", "diffusers", _family(generator), *tags, "unifl"]

    path = Path(folder) / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    name = title or path.parent.resolve().name
    body = _body(name, generator, kind, sampling, str(base_model or ""), summary, prompt)
    path.write_text(f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{body}", encoding="utf-8")
    return path


def push(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Uploads a folder to a model hub; nothing else in this package sends anything anywhere.

    Args:
        folder: A saved model with its card.
        repo_id: "owner/name"; made if it does not exist.
        private: Visibility of a repository that is made.

    Returns:
        The address of the commit.

    Raises:
        UserError: No such folder, no card in it, or the hub refused.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder} to push; give the folder of a saved model")
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder} has no README.md; write its model card before pushing it")
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder)))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder} could not be pushed to {repo_id} ({reason}); check the name, the network, HF_HUB_OFFLINE "
            "and `hf auth login`"
        ) from error


def _body(
    name: str,
    generator: Generator,
    kind: str,
    sampling: Sampling,
    base_model: str,
    summary: str,
    prompt: str,
) -> str:
    pipeline = type(generator.pipeline).__name__
    base = f'pipe = {pipeline}.from_pretrained("{base_model or "path/to/base-model"}")\n'
    call, imports, what = sampling.call, "", {"lora": "LoRA", "user": "user adapter"}.get(kind, kind)
    files = ""
    if kind == "user":
        load = base + _user_example(generator, sampling)
        call, imports = f"{call}, ip_adapter_image_embeds=[user]", "import torch\n"
    elif kind == "lora":
        load = base + 'pipe.load_lora_weights("path/to/this/folder")'
        if generator.denoiser == UNET:
            files = f"\nA second file, `{KOHYA_FILE}`, holds the same weights with the key names of kohya's scripts.\n"
    else:
        load = f'pipe = {pipeline}.from_pretrained("path/to/this/folder")'
    scheduler, classes, choice = sampling.scheduler, f"{sampling.scheduler}, {pipeline}", _choice(sampling)
    if isinstance(generator.schedule, FlowSchedule):  # it is sampled with the scheduler that it comes with
        scheduler, classes, choice = type(generator.pipeline.scheduler).__name__, pipeline, ""
    start = f" starting from `{base_model}`" if base_model else ""
    return f"""# {name}

A text-to-image {what} trained with unifl{start}.

{summary.strip() or "No description was given."}

## Sampling

| steps | guidance_scale | scheduler | timesteps | size |
|---|---|---|---|---|
| {sampling.steps} | {sampling.guidance:g} | {scheduler} | {_timesteps(sampling)} | {_size(generator)} |

```python
{imports}from diffusers import {classes}

{load}
{choice}image = pipe("{prompt}", {call}).images[0]
```
{_note(generator, sampling)}{files}"""


def _choice(sampling: Sampling) -> str:
    """The line that gives a pipeline its scheduler."""
    return f"pipe.scheduler = {sampling.scheduler}.from_config(\n    pipe.scheduler.config, {sampling.arguments}\n)\n"


def _family(generator: Generator) -> str:
    """The tag of the family."""
    if isinstance(generator.schedule, FlowSchedule):
        return "stable-diffusion-3"
    return "stable-diffusion-xl" if generator.is_xl else "stable-diffusion"


def _user_example(generator: Generator, sampling: Sampling) -> str:
    """Loading a user adapter, and a place for the embedding of a user."""
    assert isinstance(generator.roles, UserRoles)
    width = generator.roles.settings.embedding_dim
    load = f"""pipe.load_ip_adapter(
    "path/to/this/folder", subfolder="", weight_name="{USER_FILE}", image_encoder_folder=None
)
user = torch.zeros(1, 1, {width})  # an unknown user; put the embedding of yours here"""
    if sampling.guidance > 1:
        load += "\nuser = torch.cat([torch.zeros_like(user), user])  # guidance: nobody, then the user"
    return load


def _timesteps(sampling: Sampling) -> str:
    return sampling.spacing if sampling.consistency is None else f"{sampling.consistency.origin_steps} points"


def _note(generator: Generator, sampling: Sampling) -> str:
    """What to expect where the DDIM of diffusers takes other steps than the one that the model was trained with."""
    if (
        isinstance(generator.schedule, FlowSchedule)
        or sampling.consistency is not None
        or sampling.spacing == "leading"
        or generator.num_train_timesteps % sampling.steps == 0
    ):
        return ""
    return (
        f"\n{sampling.steps} does not divide {generator.num_train_timesteps}: with trailing timesteps, a step of this "
        "scheduler then ends beside the next timestep of its own grid. Pictures differ a little from those that unifl "
        "draws, whose steps end where the next one starts.\n"
    )


def _size(generator: Generator) -> str:
    height, width = generator.image_size
    return f"{width} x {height}"


def _header_of(card: Path) -> dict[str, Any]:
    """The YAML header of a model card, or nothing where there is none."""
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n")
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}
