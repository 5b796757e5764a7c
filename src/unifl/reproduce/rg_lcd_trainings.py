"""What is trained for the claims of RG-LCD; settings were chosen with the validation judge on training prompts."""

from __future__ import annotations

from unifl.reproduce.parts import Look, Training

SEEDS = (0, 1, 2)
NUM_PROMPTS = 680
"""Two thousand pictures over the three seeds, for distances between distributions."""
STEP_COUNTS = (1, 2, 4, 8)
TEACHER_STEPS = 50

_AT_STEPS = tuple(Look(name=f"steps-{number}", num_steps=number) for number in STEP_COUNTS)


def trainings() -> tuple[Training, ...]:
    """All of them."""
    return (
        Training(name="real", looks=(Look(name="real", real=True),)),
        Training(
            name="teacher",
            needs=("baselines-50",),
            looks=(Look(name=f"steps-{TEACHER_STEPS}", num_steps=TEACHER_STEPS), *_AT_STEPS),
        ),
        Training(name="lcd", recipe="lcd", looks=_AT_STEPS),
        Training(name="rg-lcd", recipe="rg_lcd", looks=_AT_STEPS),
    )
