"""Features of pictures, for distances between sets of them."""

from unifl.feedback.features.catalogue import FEATURES as FEATURES
from unifl.feedback.features.catalogue import FeatureCard as FeatureCard
from unifl.feedback.features.catalogue import PictureFeatures as PictureFeatures
from unifl.feedback.features.catalogue import open_features as open_features
