"""Preference data: their forms, an index that never reads a picture, filters, a report, and rows for methods.

from unifl.data.preferences import PreferenceSet, Filters
pairs = PreferenceSet.from_path("pickapic_v2/data", filters=Filters(absolute_winners=True), resolution=512)

`unifl.data.preferences.encoded_sets`, which imports the models, encodes their pictures once.
"""

from unifl.data.preferences.filters import Filters as Filters
from unifl.data.preferences.filters import Step as Step
from unifl.data.preferences.filters import absolute_winners as absolute_winners
from unifl.data.preferences.filters import duplicates as duplicates
from unifl.data.preferences.filters import latest_losers as latest_losers
from unifl.data.preferences.filters import select as select
from unifl.data.preferences.forms import read_preferences as read_preferences
from unifl.data.preferences.index import PreferenceIndex as PreferenceIndex
from unifl.data.preferences.preference_set import JudgedSet as JudgedSet
from unifl.data.preferences.preference_set import PreferenceSet as PreferenceSet
from unifl.data.preferences.report import JudgedReport as JudgedReport
from unifl.data.preferences.report import PreferenceReport as PreferenceReport
from unifl.data.preferences.report import report_judged as report_judged
from unifl.data.preferences.report import report_pairs as report_pairs
from unifl.data.preferences.scored_forms import JudgedIndex as JudgedIndex
from unifl.data.preferences.write import write_pairs as write_pairs
