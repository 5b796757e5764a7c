"""Unified feedback learning for diffusion models.

The names that most programs need are here; everything else is in the subpackages. Names are imported when they
are first used, so that `import unifl` costs nothing and the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unifl.data import AnnotatedImages as AnnotatedImages
    from unifl.data import CocoImages as CocoImages
    from unifl.data import PreferencePairs as PreferencePairs
    from unifl.data import load_prompts as load_prompts
    from unifl.errors import TrainingStopped as TrainingStopped
    from unifl.errors import UserError as UserError
    from unifl.evaluation import Judge as Judge
    from unifl.evaluation import compare_models as compare_models
    from unifl.evaluation import evaluate_model as evaluate_model
    from unifl.evaluation import write_report as write_report
    from unifl.feedback import Critic as Critic
    from unifl.feedback import Feedback as Feedback
    from unifl.feedback import LayoutCritic as LayoutCritic
    from unifl.feedback import StructureCritic as StructureCritic
    from unifl.feedback import StyleCritic as StyleCritic
    from unifl.feedback import as_feedback as as_feedback
    from unifl.feedback import calibrate_level as calibrate_level
    from unifl.feedback import fit_reward as fit_reward
    from unifl.feedback import weighted_sum as weighted_sum
    from unifl.methods.refl import ReFL as ReFL
    from unifl.methods.refl import ReFLConfig as ReFLConfig
    from unifl.methods.unifl import UniFL as UniFL
    from unifl.methods.unifl_config import UniFLConfig as UniFLConfig
    from unifl.metrics import Result as Result
    from unifl.metrics import read_result as read_result
    from unifl.metrics import write_result as write_result
    from unifl.models import FullTraining as FullTraining
    from unifl.models import Generator as Generator
    from unifl.models import LoraTraining as LoraTraining
    from unifl.models import load_generator as load_generator
    from unifl.models import make_generator as make_generator
    from unifl.models.card import model_card as model_card
    from unifl.models.card import push as push
    from unifl.models.save import save_lora as save_lora
    from unifl.models.save import save_pipeline as save_pipeline
    from unifl.randomness import Key as Key
    from unifl.sampling import sample as sample
    from unifl.training.config import OptimizerConfig as OptimizerConfig
    from unifl.training.config import TrainingConfig as TrainingConfig
    from unifl.training.loop import StepResult as StepResult
    from unifl.training.loop import train as train
    from unifl.training.plan import plan as plan

__version__ = "0.1.0.dev0"

_HOME = {
    "AnnotatedImages": "unifl.data",
    "CocoImages": "unifl.data",
    "Critic": "unifl.feedback",
    "Feedback": "unifl.feedback",
    "FullTraining": "unifl.models",
    "Generator": "unifl.models",
    "Judge": "unifl.evaluation",
    "Key": "unifl.randomness",
    "LayoutCritic": "unifl.feedback",
    "LoraTraining": "unifl.models",
    "OptimizerConfig": "unifl.training.config",
    "PreferencePairs": "unifl.data",
    "ReFL": "unifl.methods.refl",
    "ReFLConfig": "unifl.methods.refl",
    "Result": "unifl.metrics",
    "StepResult": "unifl.training.loop",
    "StructureCritic": "unifl.feedback",
    "StyleCritic": "unifl.feedback",
    "TrainingConfig": "unifl.training.config",
    "TrainingStopped": "unifl.errors",
    "UniFL": "unifl.methods.unifl",
    "UniFLConfig": "unifl.methods.unifl_config",
    "UserError": "unifl.errors",
    "as_feedback": "unifl.feedback",
    "calibrate_level": "unifl.feedback",
    "compare_models": "unifl.evaluation",
    "evaluate_model": "unifl.evaluation",
    "fit_reward": "unifl.feedback",
    "load_generator": "unifl.models",
    "load_prompts": "unifl.data",
    "make_generator": "unifl.models",
    "model_card": "unifl.models.card",
    "plan": "unifl.training.plan",
    "push": "unifl.models.card",
    "read_result": "unifl.metrics",
    "sample": "unifl.sampling",
    "save_lora": "unifl.models.save",
    "save_pipeline": "unifl.models.save",
    "train": "unifl.training.loop",
    "weighted_sum": "unifl.feedback",
    "write_report": "unifl.evaluation",
    "write_result": "unifl.metrics",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
