"""Numbers from samples: distances, diversity, intervals, paired comparisons, and the file that holds them."""

from unifl.metrics.diversity import relative_diversity as relative_diversity
from unifl.metrics.diversity import seed_diversity as seed_diversity
from unifl.metrics.frechet import frechet_distance as frechet_distance
from unifl.metrics.frechet import frechet_replicates as frechet_replicates
from unifl.metrics.intervals import Interval as Interval
from unifl.metrics.intervals import bootstrap_counts as bootstrap_counts
from unifl.metrics.intervals import centred_interval as centred_interval
from unifl.metrics.intervals import change_interval as change_interval
from unifl.metrics.intervals import difference_interval as difference_interval
from unifl.metrics.intervals import mean_interval as mean_interval
from unifl.metrics.intervals import ratio_interval as ratio_interval
from unifl.metrics.intervals import seed_prompt_interval as seed_prompt_interval
from unifl.metrics.kid import kernel_distance as kernel_distance
from unifl.metrics.kid import kernel_replicates as kernel_replicates
from unifl.metrics.paired import Paired as Paired
from unifl.metrics.paired import paired_comparison as paired_comparison
from unifl.metrics.paired import paired_over_seeds as paired_over_seeds
from unifl.metrics.result import Result as Result
from unifl.metrics.result import merge_results as merge_results
from unifl.metrics.result import read_result as read_result
from unifl.metrics.result import write_result as write_result
