"""Diffusers pipelines as generators: roles, loading and saving."""

from unifl.models.card import Sampling as Sampling
from unifl.models.card import model_card as model_card
from unifl.models.card import push as push
from unifl.models.conditioning import Conditioning as Conditioning
from unifl.models.conditioning import Prediction as Prediction
from unifl.models.generator import Generator as Generator
from unifl.models.generator import MixedPrecision as MixedPrecision
from unifl.models.load import FullTraining as FullTraining
from unifl.models.load import load_generator as load_generator
from unifl.models.load import load_pipeline as load_pipeline
from unifl.models.load import make_generator as make_generator
from unifl.models.lora import LoraTraining as LoraTraining
from unifl.models.merge import merged_pipeline as merged_pipeline
from unifl.models.merge import sampling_scheduler as sampling_scheduler
from unifl.models.roles import Roles as Roles
from unifl.models.save import save_lora as save_lora
from unifl.models.save import save_pipeline as save_pipeline
from unifl.models.user import UserTraining as UserTraining
from unifl.models.user_files import load_user_adapter as load_user_adapter
from unifl.models.user_files import save_user_adapter as save_user_adapter
from unifl.models.user_files import user_training_of as user_training_of
