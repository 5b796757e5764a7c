"""A reward model that goes on learning: UniFL's discriminator.

Its parameters get gradients only from `forward`; `judge` lets gradients through to the pixels alone, so the
generator's update can never leave something behind in the discriminator.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from unifl.errors import UserError
from unifl.feedback.base import Feedback, Space
from unifl.feedback.networks import SharedTrunk


class Discriminator(nn.Module):
    """A trainable copy of a reward network, read as the logit of "this is a real picture".

    The network stays in eval mode: dropout would make the two halves of the game disagree on what they judge. A
    reward in half precision becomes float32, since updates are too small for half.

    Args:
        network: Called with (images, prompts), or the images alone, returns (b,) logits. It is copied.
        needs: Subset of {"prompt"}: whether the prompts are passed on.

    Reference:
        UniFL, arXiv 2404.05595, section 4.3: r_a, initialised from the reward model of the detail axis.
    """

    name: str = "discriminator"
    space: Space = "pixel"
    differentiable: bool = True
    range: tuple[float, float] | None = None

    def __init__(self, network: nn.Module, *, needs: frozenset[str] = frozenset({"prompt"})) -> None:
        super().__init__()
        self.needs = needs
        self.network = copy.deepcopy(network).float().eval().requires_grad_(True)

    @classmethod
    def from_feedback(cls, feedback: Feedback | nn.Module) -> Discriminator:
        """Copy the network of a reward.

        Args:
            feedback: A reward that is a module, or that holds one as `network` (`NetworkFeedback`).

        Raises:
            UserError: There is no network that could be trained, or it reads latents.
        """
        if isinstance(feedback, Discriminator):
            return cls(feedback.network, needs=feedback.needs)
        network = feedback if isinstance(feedback, nn.Module) else getattr(feedback, "network", None)
        name = getattr(feedback, "name", type(feedback).__name__)
        if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
            raise UserError(
                f"the feedback {name!r} has no network to train as a discriminator; "
                "start it from a reward network, for example the one of the detail axis"
            )
        if getattr(feedback, "space", "pixel") != "pixel":
            raise UserError(f"the feedback {name!r} reads latents; the discriminator compares pictures")
        return cls(network, needs=getattr(feedback, "needs", frozenset({"prompt"})))

    def train(self, mode: bool = True) -> Discriminator:
        """Keeps the network in eval mode whatever a training loop asks for."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Logits with gradients to the parameters."""
        return self.network(*self._arguments(images, prompts))

    def judge(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Logits with gradients to the pixels only."""
        frozen = {name: value.detach() for name, value in self.network.named_parameters()}
        logits = functional_call(self.network, frozen, self._arguments(images, prompts))
        for module in self.network.modules():
            if isinstance(module, SharedTrunk):
                module.forget()  # its weights look frozen here, but they move at the next update
        return logits

    def _arguments(self, images: Tensor, prompts: Sequence[str]) -> tuple:
        return (images, prompts) if "prompt" in self.needs else (images,)
