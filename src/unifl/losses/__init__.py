"""Losses as pure functions on tensors; one value per sample unless a docstring says otherwise.

`hinge` here is that of rewards; the one of pairs is `unifl.losses.preference.hinge`.
"""

from unifl.losses.advantages import decoupled_advantage as decoupled_advantage
from unifl.losses.advantages import group_advantage as group_advantage
from unifl.losses.adversarial import discriminator_bce as discriminator_bce
from unifl.losses.adversarial import generator_bounded as generator_bounded
from unifl.losses.adversarial import generator_linear as generator_linear
from unifl.losses.adversarial import generator_logsigmoid as generator_logsigmoid
from unifl.losses.anchor import distance_to_start as distance_to_start
from unifl.losses.denoising import denoising_mse as denoising_mse
from unifl.losses.denoising import masked_mse as masked_mse
from unifl.losses.denoising import truncated_snr as truncated_snr
from unifl.losses.dense import cross_entropy_map as cross_entropy_map
from unifl.losses.dense import dice_loss as dice_loss
from unifl.losses.dense import focal_loss as focal_loss
from unifl.losses.dense import solo_loss as solo_loss
from unifl.losses.depth import normalised_depth as normalised_depth
from unifl.losses.depth import scale_shift_invariant as scale_shift_invariant
from unifl.losses.edges import edge_distance as edge_distance
from unifl.losses.edges import edge_map as edge_map
from unifl.losses.preference import beta_over_time as beta_over_time
from unifl.losses.preference import bradley_terry as bradley_terry
from unifl.losses.preference import ipo as ipo
from unifl.losses.preference import logistic as logistic
from unifl.losses.preference import logistic_with_ties as logistic_with_ties
from unifl.losses.preference_margin import bounded_score as bounded_score
from unifl.losses.preference_margin import mapo as mapo
from unifl.losses.preference_margin import pso as pso
from unifl.losses.preference_margin import pso_hinge as pso_hinge
from unifl.losses.preference_single import kto as kto
from unifl.losses.preference_single import kto_baseline as kto_baseline
from unifl.losses.preference_single import reward_weights as reward_weights
from unifl.losses.proxy import contrastive as contrastive
from unifl.losses.proxy import pairwise_agreement as pairwise_agreement
from unifl.losses.proxy import pairwise_fit as pairwise_fit
from unifl.losses.queries import dense_query_loss as dense_query_loss
from unifl.losses.queries import match_queries as match_queries
from unifl.losses.queries import matched_query_loss as matched_query_loss
from unifl.losses.queries import semantic_scores as semantic_scores
from unifl.losses.reward import hinge as hinge
from unifl.losses.reward import refl_margin as refl_margin
from unifl.losses.reward_modelling import labelled_pair as labelled_pair
from unifl.losses.reward_modelling import plackett_luce as plackett_luce
from unifl.losses.reward_modelling import spread as spread
from unifl.losses.reward_modelling import two_views as two_views
from unifl.losses.style import gram as gram
from unifl.losses.style import gram_distance as gram_distance
