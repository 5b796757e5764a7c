"""Prompt suites that people compare models on, read from the files in which they were published."""

from unifl.data.suites.entry import MAX_PROMPT as MAX_PROMPT
from unifl.data.suites.entry import Entry as Entry
from unifl.data.suites.entry import Question as Question
from unifl.data.suites.entry import Suite as Suite
from unifl.data.suites.entry import Wanted as Wanted
from unifl.data.suites.entry import require_text as require_text
from unifl.data.suites.geneval import drawn_folders as drawn_folders
from unifl.data.suites.geneval import drawn_prompts as drawn_prompts
from unifl.data.suites.load import FORMS as FORMS
from unifl.data.suites.load import load_suite as load_suite
