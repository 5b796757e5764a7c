"""Training: the loop, optimisers, EMA, checkpoints and resume, logging, several processes, the plan."""
