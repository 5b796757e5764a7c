"""`unifl reward`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unifl.cli.arguments import Overrides
from unifl.cli.console import interrupted, out, progress_line, quiet_libraries, this_command, write_json

if TYPE_CHECKING:
    from unifl.metrics.preference_accuracy import PreferenceAccuracy

reward = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Rewards: train one, and see how well one agrees with people.",
)


@reward.command("eval")
def evaluate(
    scorer: Annotated[
        str,
        typer.Argument(help="pickscore (see `unifl scorers`), world:rewards/color, a folder, module:name."),
    ],
    data: Annotated[str, typer.Argument(help="Preference data, as `unifl preferences` reads them.")],
    weights: Annotated[str | None, typer.Option(help="Where the weights of a scorer are.")] = None,
    base: Annotated[str | None, typer.Option(help="Where its tokenizer and config are.")] = None,
    question: Annotated[str | None, typer.Option(help="A text file with what a judge is asked.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or tag of the hub of its weights.")] = None,
    form: Annotated[
        Literal["auto", "pick_a_pic", "hpd", "chosen_rejected", "store"],
        typer.Option(help="What the columns are; auto looks at them."),
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="Which part of a folder or of a hub data set.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that names of pictures start from; that of the data by default."),
    ] = None,
    score: Annotated[str | None, typer.Option(help="For a sample store: which score makes pairs.")] = None,
    resolution: Annotated[
        int | None,
        typer.Option(help="Pixels that pictures are brought to; without it they go one at a time."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the numbers into this file, too.")
    ] = None,
) -> None:
    """Say how often a reward orders pairs as people did, and how sure it may be.

    Accuracy on pairs with a preference, with an interval over prompts; the
    most that is right of all pairs when small leads count as ties; the
    scale that turns its scores into log-odds, and how well calibrated it
    then is. Ties in the data count where they say so.

    For example:

        unifl reward eval pickscore pickapic_v2/data --split test --resolution 224
        unifl reward eval hpsv2.1 pairs --weights HPS_v2.1_compressed.pt --base CLIP-ViT-H-14
        unifl reward eval imagereward ImageReward/data/test.json --images ImageReward/data/test_images
        unifl reward eval world:rewards/color runs/preferences
    """
    quiet_libraries()
    from unifl.assembly import resolve
    from unifl.assembly.device import chosen_device
    from unifl.assembly.on_pictures import on_pictures
    from unifl.assembly.reward_eval import evaluate_reward, warn_if_learnt
    from unifl.data.preferences import Filters, PreferenceIndex, PreferenceSet, read_preferences, select
    from unifl.disk import require_writable
    from unifl.errors import UserError

    if output is not None:
        require_writable(output)
    place = chosen_device(device)
    index = read_preferences(data, form=form, split=split, images=images, score=score)
    if not isinstance(index, PreferenceIndex):
        raise UserError(f"{data} holds likes, which are no pairs; a reward is compared on pairs")
    chosen, _ = select(index, Filters(), ties="keep")
    pairs = PreferenceSet(chosen, resolution=resolution).checked(sizes=False)
    part = resolve.named(scorer, weights=weights, base=base, question=question, revision=revision)
    reward = resolve.feedback(part, name=scorer, device=place)
    warn_if_learnt(reward, index)
    found = evaluate_reward(
        on_pictures(reward, device=place),
        pairs,
        batch_size=batch_size,
        device=place,
        progress=lambda done, total: progress_line(scorer, done, total),
    )
    if output is not None:
        write_json(found, output)
    _show(found)


@reward.command()
def train(
    data: Annotated[str, typer.Argument(help="Preference data, as `unifl preferences` reads them.")],
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option("--out", help="Gets the reward model.", show_default=False)] = Path(
        "runs/reward"
    ),
    config: Annotated[Path | None, typer.Option(help="A YAML file with settings.")] = None,
    vote: Annotated[
        bool, typer.Option("--vote", help="Let ten models vote on the labels: voting={} with its defaults.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    r"""Train a reward model on pairs that people compared.

    Backbones: small (a network for a laptop), clip, siglip, blip (with
    network.base), latent (noisy latents too, with network.timed=true). A tenth of
    the prompts is held out: half of them say where the fit ends, and the others
    tell how good it is. What comes out is a folder that a recipe, `unifl score` and `unifl reward eval` open by its
    path, with a card, the course of the fit and a picture of its calibration.
    A training that was interrupted goes on by the same command.

    For example:

        unifl reward train runs/preferences --out runs/reward
        unifl reward train runs/preferences --out runs/voted --vote voting.folds=2
        unifl reward train pairs --out runs/pick network.backbone=clip \
              network.base=openai/clip-vit-base-patch32 network.train_blocks=2 \
              fit.learning_rate=1e-5
        unifl reward train pairs --out runs/latent network.backbone=latent network.timed=true
    """
    quiet_libraries()
    from tqdm import tqdm

    from unifl import config as configs
    from unifl.assembly.reward_train import train_reward
    from unifl.assembly.reward_train_config import RewardTrainConfig

    changes = [*(["voting={}"] if vote else []), *(overrides or [])]
    settings = configs.load(config if config is not None else {}, RewardTrainConfig, changes)
    bar = None

    def progress(what: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None:  # after the checks of settings and data; what an earlier call did costs no time now
            bar = tqdm(total=total, initial=done - 1, disable=quiet, unit="step")
        bar.set_description(what, refresh=False)
        bar.update(done - bar.n)

    try:
        found = train_reward(settings, data, folder, progress=progress)
    except KeyboardInterrupt as stop:
        raise interrupted(f"the same command goes on: {this_command()}") from stop
    finally:
        if bar is not None:
            bar.close()
    _show(found)
    out.print(f"the reward model is in {folder}; in a recipe: rewards: {{mine: {folder}}}", highlight=False)


def _show(found: PreferenceAccuracy) -> None:
    from rich.table import Table

    decided = found.decided
    out.print(
        f"ordered as people did: {decided.value:.1%} [{decided.low:.1%}, {decided.high:.1%}] of {found.pairs} pairs "
        f"with a preference, over {decided.n} prompts",
        highlight=False,
    )
    if found.ties:
        out.print(
            f"with {found.ties} ties: at most {found.with_ties:.1%} of all, when leads up to "
            f"{found.threshold:.4g} are ties",
            highlight=False,
        )
    out.print(
        f"log-odds are scores / {found.scale:.4g}; loss {found.log_loss:.4f} (a coin: 0.6931)",
        highlight=False,
    )
    table = Table("pairs", "expected right", "right")
    for one in found.calibration:
        table.add_row(str(one.pairs), f"{one.expected:.1%}", f"{one.observed:.1%}")
    out.print(table)
