"""The model as an attack sees it: whatever would blind the attack is an error, never robustness."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hydraprune.errors import UserError


class Guarded(nn.Module):
    """The same logits, watched.

    Logits or input gradients that are NaN or infinite raise, as the attack could not see its way. Where no gradient
    reaches the input at all (an argmax, a cast to bytes) it is zero instead of an error of autograd: gradient attacks
    stand still then, black-box ones go on, and the sanity checks say so.

    Args:
        model: (batch, ...) pixels to (batch, classes) logits.
        where: names the images in errors, such as "under attack in batch 3".
        check: called before each forward pass; may raise to stop a long attack.

    Raises:
        UserError: from `forward` or from the backward pass through it.
    """

    def __init__(self, model: nn.Module, where: str, check: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.model, self.where, self.check = model, where, check

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes)."""
        self.check()
        logits: Tensor = self.model(images)
        if not torch.isfinite(logits).all():
            raise UserError(f"the model returns NaN or infinite logits {self.where}")
        if torch.is_grad_enabled() and images.requires_grad:
            images.register_hook(self._inspect)  # type: ignore[no-untyped-call]
            logits = logits + 0.0 * images.flatten(1).sum(1, keepdim=True)
        return logits

    def _inspect(self, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            raise UserError(f"the model's gradients are NaN or infinite {self.where}")
