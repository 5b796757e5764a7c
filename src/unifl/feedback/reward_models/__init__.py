"""Reward models of one's own: backbones with a head, fitted to preferences and kept as folders."""

from unifl.feedback.reward_models.config import RewardModelConfig as RewardModelConfig
from unifl.feedback.reward_models.files import is_reward_model as is_reward_model
from unifl.feedback.reward_models.files import load_reward_model as load_reward_model
from unifl.feedback.reward_models.files import save_reward_model as save_reward_model
from unifl.feedback.reward_models.model import RewardModel as RewardModel
from unifl.feedback.reward_models.model import TrainedReward as TrainedReward
from unifl.feedback.reward_models.model import make_reward_model as make_reward_model
