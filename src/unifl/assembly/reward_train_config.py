"""What `unifl reward train` is told, as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unifl.data.preferences.forms import Form
from unifl.errors import UserError
from unifl.feedback.fit_config import FitConfig, check_fit
from unifl.feedback.fit_rankings import check_for_rankings
from unifl.feedback.reward_models.config import RewardModelConfig
from unifl.feedback.voting import VotingConfig


@dataclass(kw_only=True)
class PolicyConfig:
    """Samples of the present policy, for MetaRM; they need no labels."""

    folder: str
    """A folder with metadata.jsonl (file_name, prompt), as `unifl generate` writes it, with several pictures a
    prompt."""
    prompts: int = 8
    """Prompts per step."""
    samples: int = 4
    """Pictures of each; prompts with fewer are left out."""


@dataclass(kw_only=True)
class RewardTrainConfig:
    """A reward model, what it is fitted to, and how."""

    network: RewardModelConfig = field(default_factory=RewardModelConfig)
    """The model."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Its fit; `held_out` is a share of the prompts. With `keep_best` half of these end the fit, the others measure."""
    voting: VotingConfig | None = None
    """Let several models vote on the labels first."""
    voters: RewardModelConfig | None = None
    """Models that vote; null takes models like the one that is trained."""
    voter_fit: FitConfig | None = None
    """Their fit; null is that of the model."""
    rankings: bool = False
    """Fit to whole rankings of a prompt's pictures, as far as comparisons add up to some."""
    policy: PolicyConfig | None = None
    """Fit by MetaRM."""
    form: Form = "auto"
    """What the columns of the data are; auto looks at them."""
    split: str | None = None
    """Which part of a folder or of a hub data set."""
    images: str | None = None
    """Folder that names of pictures start from; that of the data by default."""
    score: str | None = None
    """For a sample store: which score makes pairs."""
    ties: Literal["keep", "drop"] = "keep"
    """Whether pairs that nobody won are learnt from."""
    resolution: int | None = None
    """Pixels that pictures are brought to; null is 64 for the small backbone, and what a base's processor asks for."""
    autoencoder: str = "world:pipeline"
    """For the latent backbone: the model whose latents are judged."""
    name: str = "reward"
    """What the reward is called."""
    device: str = "auto"
    """Where."""

    def __post_init__(self) -> None:
        check_fit(self.fit)
        if self.voter_fit is not None:
            check_fit(self.voter_fit)
        if self.voting is None and (self.voters is not None or self.voter_fit is not None):
            raise UserError(
                "voters and voter_fit are for voting, which is off; set voting={} or leave them out"
            )
        if self.rankings and (self.voting is not None or self.network.backbone == "latent"):
            raise UserError("rankings are fitted on pictures and without voting; leave out one of them")
        if self.rankings:
            check_for_rankings(self.fit)
        if self.voters is not None and (self.voters.backbone == "latent") != (
            self.network.backbone == "latent"
        ):
            raise UserError("voters must read what the network reads: both latents, or both pictures")
        fits = ((self.network, self.fit), (self.voters or self.network, self.voter_fit or self.fit))
        if any(shape.dropout == 0 and fit.contrastive > 0 for shape, fit in fits):
            raise UserError(
                "the two views of fit.contrastive are made by dropout, and it is 0; raise network.dropout (and that of "
                "voters), or set contrastive to 0"
            )
        if self.policy is not None:
            if self.network.backbone == "latent":
                raise UserError(
                    "samples of the policy are pictures, and this backbone reads latents; leave them out"
                )
            if self.policy.samples < 2 or self.policy.prompts < 1:
                raise UserError(
                    "MetaRM compares samples of a prompt; take at least 2 samples and 1 prompt a step"
                )
