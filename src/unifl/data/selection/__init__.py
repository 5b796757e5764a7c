"""Active prompt selection (UniFL, arXiv 2404.05595, section 4.2): prompts that say something, and differ.

from unifl.data.selection import select_prompts
chosen = select_prompts(prompts, embeddings, number=100_000)
kept = [prompts[index] for index in chosen.indices]
"""

from unifl.data.selection.cache import embed_in_shards as embed_in_shards
from unifl.data.selection.embeddings import TextEncoder as TextEncoder
from unifl.data.selection.embeddings import load_embeddings as load_embeddings
from unifl.data.selection.embeddings import load_text_encoder as load_text_encoder
from unifl.data.selection.greedy import compress_exactly as compress_exactly
from unifl.data.selection.inverted import compress_approximately as compress_approximately
from unifl.data.selection.parsers import open_parser as open_parser
from unifl.data.selection.relations import Entity as Entity
from unifl.data.selection.relations import Parser as Parser
from unifl.data.selection.relations import relation_score as relation_score
from unifl.data.selection.select import Selection as Selection
from unifl.data.selection.select import SelectionConfig as SelectionConfig
from unifl.data.selection.select import select_prompts as select_prompts
from unifl.data.selection.similarity import Similarity as Similarity
from unifl.data.selection.similarity import average_nearest_similarity as average_nearest_similarity
