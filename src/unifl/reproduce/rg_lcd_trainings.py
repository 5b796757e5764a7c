"""What is trained for the claims of RG-LCD; settings were chosen with the validation judge on training prompts."""

from __future__ import annotations

from unifl.reproduce.parts import Look, Training

SEEDS = (0, 1, 2)
NUM_PROMPTS = 680
"""Two thousand pictures over the three seeds, for distances between distributions."""
STEP_COUNTS = (1, 2, 4, 8)
TEACHER_STEPS = 50
LENGTH, FOLLOWED_STEPS = 200, (50, 100, 150)
"""Training steps that go on from LCD, and those after which these runs are judged too."""
EXPERT = "reward_global"
"""The reading that is the expert of claim c."""

_AT_STEPS = tuple(Look(name=f"steps-{number}", num_steps=number) for number in STEP_COUNTS)
_IN_TWO = Look(name="steps-2", num_steps=2)
_FOLLOWED = (
    *(Look(name=f"after-{step}", num_steps=2, checkpoint=step) for step in FOLLOWED_STEPS),
    _IN_TWO,
)
_LONGER = (f"training.max_train_steps={LENGTH}", f"training.checkpointing_steps={FOLLOWED_STEPS[0]}")
_DIRECT = (
    "rewards={global: world:rewards/global}",
    "method.rewards.weights={global: 1.0}",
    "method.rewards.levels={}",
)
_PROXY = ("proxy=$runs/proxy",)
_FROZEN = ("method.proxy.train=false", "training.optimizers={}", "expert=null")
_JPEG = ("expert=unifl.feedback:JpegSize", "method.proxy.temperature=0.1")


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
        _after_lcd("lcd-longer", "lcd"),
        _after_lcd("direct", "rg_lcd", *_DIRECT, looks=_FOLLOWED),
        _after_lcd("proxy", "rg_lcd_proxy", *_PROXY, looks=_FOLLOWED, logs=("proxy/agreement",)),
        _after_lcd("proxy-frozen", "rg_lcd_proxy", *_PROXY, *_FROZEN, looks=_FOLLOWED),
        _after_lcd("jpeg", "rg_lcd_proxy", *_PROXY, *_JPEG),
    )


def _after_lcd(
    name: str,
    recipe: str,
    *changes: str,
    looks: tuple[Look, ...] = (_IN_TWO,),
    logs: tuple[str, ...] = (),
) -> Training:
    """A training whose student goes on from that of LCD."""
    needs = ("proxy",) if "proxy" in recipe else ()
    return Training(
        name=name, recipe=recipe, changes=(*_LONGER, *changes), start="lcd", start_as="student", needs=needs,
        looks=looks, logs=logs,
    )  # fmt: skip
