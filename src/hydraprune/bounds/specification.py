"""What is to be bounded: linear functions of the logits, a row of C for each."""

import torch
from torch import Tensor

from hydraprune.errors import UserError


def margins(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return C with (C z)_j = z_label − z_j for each other class j in order, (batch, classes − 1, classes).

    An image is classified rightly throughout a region when all its margins are above 0 there.

    Args:
        labels: (batch,) int64.
        classes: the number of logits, at least 2.
        dtype: of C.
    """
    identity = torch.eye(classes, dtype=dtype, device=labels.device)
    every = identity[labels].unsqueeze(1) - identity
    others = torch.arange(classes, device=labels.device) != labels.unsqueeze(1)
    return every[others].reshape(len(labels), classes - 1, classes)


def checked(specification: Tensor | None, output: Tensor) -> Tensor:
    """Return C as (batch, m, classes) in the dtype of the output, the identity where none is given.

    Raises:
        UserError: the shapes do not fit, or the output is not (batch, classes).
    """
    if output.ndim != 2:
        raise UserError(
            f"linear bounds need an output of shape (batch, classes), not {tuple(output.shape)}: flatten it"
        )
    batch, classes = output.shape
    if specification is None:
        return torch.eye(classes, dtype=output.dtype, device=output.device).expand(batch, -1, -1)
    rows = specification.to(output.device, output.dtype)
    if rows.ndim == 2:
        rows = rows.expand(batch, -1, -1)
    if rows.ndim != 3 or len(rows) != batch or rows.shape[2] != classes:
        raise UserError(
            f"a specification is (m, {classes}) or ({batch}, m, {classes}), not {tuple(specification.shape)}"
        )
    return rows
