"""Object-focused prompts judged by a detector, by the rules of GenEval.

These are our own figures and not the official ones: the rules and thresholds are the published ones
(arXiv 2310.11513 and its code), the detector is one of transformers in place of mmdet's Mask2Former.
"""

from unifl.evaluation.geneval.colors import ClipColors as ClipColors
from unifl.evaluation.geneval.colors import ColorReader as ColorReader
from unifl.evaluation.geneval.colors import PaletteColors as PaletteColors
from unifl.evaluation.geneval.reader import GenEval as GenEval
from unifl.evaluation.geneval.rules import Thresholds as Thresholds
from unifl.evaluation.geneval.rules import Verdict as Verdict
from unifl.evaluation.geneval.rules import judge_picture as judge_picture
from unifl.evaluation.geneval.rules import relations as relations
