"""Judge models on held-out prompts, compare them in pairs, and write it all on one page."""

from unifl.evaluation.audit import audit as audit
from unifl.evaluation.audit import read_metrics as read_metrics
from unifl.evaluation.compare import change_in as change_in
from unifl.evaluation.compare import compare_models as compare_models
from unifl.evaluation.compare import compare_tables as compare_tables
from unifl.evaluation.compare import differences as differences
from unifl.evaluation.grid import picture_grid as picture_grid
from unifl.evaluation.guard import GoldJudge as GoldJudge
from unifl.evaluation.judge import Judge as Judge
from unifl.evaluation.model_result import ModelResult as ModelResult
from unifl.evaluation.model_result import Origin as Origin
from unifl.evaluation.parts import Parts as Parts
from unifl.evaluation.ranks import rank_models as rank_models
from unifl.evaluation.readings import Readings as Readings
from unifl.evaluation.report import write_report as write_report
from unifl.evaluation.report_inputs import ReportInputs as ReportInputs
from unifl.evaluation.report_inputs import read_run_folder as read_run_folder
from unifl.evaluation.report_inputs import save_pictures as save_pictures
from unifl.evaluation.scores import ScoreTable as ScoreTable
from unifl.evaluation.suite import evaluate_model as evaluate_model
from unifl.evaluation.suite import judge_features as judge_features
from unifl.evaluation.suite import score_images as score_images
