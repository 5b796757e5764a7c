"""`python -m unifl.cli`, for `accelerate launch --module unifl.cli`."""

from unifl.cli import app

app(prog_name="unifl")
