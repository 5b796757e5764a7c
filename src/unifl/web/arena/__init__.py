"""The arena: people compare pictures two at a time."""

from unifl.web.arena.database import Arena as Arena
from unifl.web.arena.database import Shown as Shown
from unifl.web.arena.pairs import Candidate as Candidate
from unifl.web.arena.pairs import PairPlan as PairPlan
from unifl.web.arena.pairs import plan_pairs as plan_pairs
from unifl.web.arena.results import ArenaResults as ArenaResults
from unifl.web.arena.results import read_results as read_results
from unifl.web.arena.settings import ArenaSettings as ArenaSettings
