"""Methods that climb a reward ask, of one at random, the part whose turn it is."""

from __future__ import annotations

import torch

from unifl.feedback import one_at_random
from unifl.methods.refl import ReFL, ReFLConfig


def test_a_method_climbs_the_part_whose_turn_it_is(make, rewards, sources, micro):
    generator = make()
    mixed = one_at_random(rewards, dict.fromkeys(rewards, 1.0))
    config = ReFLConfig(num_steps=2, stop=(0, 1), reward="mixed", grad_scale=1.0)
    method = ReFL(generator, config, rewards={"mixed": mixed}, sources=sources)
    seen = set()
    for step in range(6):
        batch = micro(step=step)
        output = method.step("student", batch)
        part = mixed.at(batch.key)
        expected = part(output.previews["aesthetic"], [""] * len(output.previews["aesthetic"])).mean()
        torch.testing.assert_close(output.metrics["reward/mixed"], expected)
        seen.add(part.name)
    assert len(seen) > 1
