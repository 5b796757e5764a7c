"""What training reads: prompts, annotated pictures, preference pairs."""

from unifl.data.batch import Batch as Batch
from unifl.data.batch import Sample as Sample
from unifl.data.batch import collate as collate
from unifl.data.coco import CocoImages as CocoImages
from unifl.data.images import AnnotatedImages as AnnotatedImages
from unifl.data.images import AnnotatedSource as AnnotatedSource
from unifl.data.images import annotations_of as annotations_of
from unifl.data.pairs import Pair as Pair
from unifl.data.pairs import PreferencePairs as PreferencePairs
from unifl.data.prompts import load_prompts as load_prompts
