"""Scorers that people use, each a Feedback with a card."""

from unifl.feedback.scorers.card import Card as Card
from unifl.feedback.scorers.cards import SCORERS as SCORERS
from unifl.feedback.scorers.catalogue import Scorer as Scorer
from unifl.feedback.scorers.catalogue import open_scorer as open_scorer
from unifl.feedback.scorers.chat import ChatJudge as ChatJudge
from unifl.feedback.scorers.plain import Colourfulness as Colourfulness
from unifl.feedback.scorers.plain import Sharpness as Sharpness
from unifl.feedback.scorers.worker import WorkerProcess as WorkerProcess
