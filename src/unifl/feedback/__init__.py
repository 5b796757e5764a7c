"""Judgements: feedback (one number per picture), critics (a loss against an annotation), discriminators."""

from unifl.feedback.base import Critic as Critic
from unifl.feedback.base import Feedback as Feedback
from unifl.feedback.base import FunctionFeedback as FunctionFeedback
from unifl.feedback.base import NetworkFeedback as NetworkFeedback
from unifl.feedback.base import as_feedback as as_feedback
from unifl.feedback.base import require_critic_gradient as require_critic_gradient
from unifl.feedback.base import require_gradient as require_gradient
from unifl.feedback.combine import clipped as clipped
from unifl.feedback.combine import normalised as normalised
from unifl.feedback.combine import weighted_sum as weighted_sum
from unifl.feedback.critics import LayoutCritic as LayoutCritic
from unifl.feedback.critics import StructureCritic as StructureCritic
from unifl.feedback.critics import StyleCritic as StyleCritic
from unifl.feedback.discriminator import Discriminator as Discriminator
from unifl.feedback.fit import FitConfig as FitConfig
from unifl.feedback.fit import FitResult as FitResult
from unifl.feedback.fit import fit_reward as fit_reward
from unifl.feedback.hinge import calibrate_level as calibrate_level
from unifl.feedback.hinge import preferred_batches as preferred_batches
