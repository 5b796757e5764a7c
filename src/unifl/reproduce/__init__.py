"""The claims of papers, measured on the embedded world: one resumable command per paper.

parts      what is trained and how it is judged, as independent pieces whose small results stay on disk
measure    one piece: train, draw held-out prompts, judge, write
figures    win rates and differences with intervals over prompts and training seeds
unifl      the pieces and the claims of UniFL
page       a page with all claims, plots and pictures
run        all of it, in order or in shards
"""
