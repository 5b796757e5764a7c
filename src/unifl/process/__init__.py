"""Noise processes, prediction kinds, times and solver steps."""

from unifl.process.consistency import ConsistencySampler as ConsistencySampler
from unifl.process.flow_map import Boundary as Boundary
from unifl.process.flow_map import ddim_map as ddim_map
from unifl.process.flow_map import ddim_origin as ddim_origin
from unifl.process.flow_map import lcm_map as lcm_map
from unifl.process.flow_map import lcm_scalings as lcm_scalings
from unifl.process.prediction import PredictionKind as PredictionKind
from unifl.process.prediction import from_x0_eps as from_x0_eps
from unifl.process.prediction import parse_kind as parse_kind
from unifl.process.prediction import require_defined as require_defined
from unifl.process.prediction import to_eps as to_eps
from unifl.process.prediction import to_x0 as to_x0
from unifl.process.process import DiscreteVP as DiscreteVP
from unifl.process.process import Flow as Flow
from unifl.process.process import Process as Process
from unifl.process.process import per_sample as per_sample
from unifl.process.process import zero_terminal_snr as zero_terminal_snr
from unifl.process.solver import Field as Field
from unifl.process.solver import SolverConfig as SolverConfig
from unifl.process.solver import ddim_step as ddim_step
from unifl.process.solver import euler_step as euler_step
from unifl.process.solver import solve as solve
from unifl.process.timesteps import Spacing as Spacing
from unifl.process.timesteps import index_of_time as index_of_time
from unifl.process.timesteps import time_grid as time_grid
from unifl.process.timesteps import time_of_index as time_of_index
