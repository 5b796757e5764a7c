"""Pages that people use, and the reward service."""
