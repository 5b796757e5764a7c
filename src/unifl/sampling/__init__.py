"""From noise or a real picture to pictures: rollouts for training, and the sampler."""

from unifl.sampling.guidance import FixedGuidance as FixedGuidance
from unifl.sampling.guidance import Guidance as Guidance
from unifl.sampling.guidance import NoGuidance as NoGuidance
from unifl.sampling.guidance import RangeGuidance as RangeGuidance
from unifl.sampling.guidance import draw_guidance as draw_guidance
from unifl.sampling.guidance import draw_guidance_each as draw_guidance_each
from unifl.sampling.guidance import halves as halves
from unifl.sampling.rollout import Rollout as Rollout
from unifl.sampling.rollout import RolloutConfig as RolloutConfig
from unifl.sampling.rollout import image_rollout as image_rollout
from unifl.sampling.rollout import prompt_rollout as prompt_rollout
from unifl.sampling.sampler import sample as sample
from unifl.sampling.sampler import sampling_times as sampling_times
