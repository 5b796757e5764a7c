"""Pages that people use."""
