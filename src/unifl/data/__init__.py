"""What training reads: prompts, annotated pictures, preference pairs.

Pictures that were encoded once are in `unifl.data.encode` and `unifl.data.encoded`, embeddings of users in
`unifl.data.users`; these import the models.
"""

from unifl.data.batch import Batch as Batch
from unifl.data.batch import Sample as Sample
from unifl.data.batch import collate as collate
from unifl.data.buckets import BucketedPictures as BucketedPictures
from unifl.data.buckets import BucketOrder as BucketOrder
from unifl.data.captions import drop_captions as drop_captions
from unifl.data.coco import CocoImages as CocoImages
from unifl.data.hub_dataset import HubPictures as HubPictures
from unifl.data.images import AnnotatedImages as AnnotatedImages
from unifl.data.images import AnnotatedSource as AnnotatedSource
from unifl.data.images import annotations_of as annotations_of
from unifl.data.judged import EncodedJudged as EncodedJudged
from unifl.data.judged import Judged as Judged
from unifl.data.pairs import EncodedPair as EncodedPair
from unifl.data.pairs import Pair as Pair
from unifl.data.pairs import PreferencePairs as PreferencePairs
from unifl.data.prompts import load_prompts as load_prompts
from unifl.data.shards import ShardedPictures as ShardedPictures
