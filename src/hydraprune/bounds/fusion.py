"""How many roundings a term passes where kernels go on with a sum in what follows: docs/soundness.md, step 1."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hydraprune.bounds.operations import Linear, Operation
from hydraprune.bounds.rounding import OPERATION_SLACK


def count_roundings(operations: Sequence[Operation]) -> None:
    """Set how many roundings a term of each node passes, where kernels go on with a sum in what follows it.

    A layer's sum of n products may take in all diagonal operations and additions behind it, up to the next layer that
    mixes or is not linear: its products and what is added to them pass n + 16 k roundings, k these operations and the
    layer itself.
    """
    behind = [0] * len(operations)
    for index, operation in reversed(list(enumerate(operations))):
        if _goes_on(operation):
            for parent in operation.inputs:
                behind[parent] = max(behind[parent], behind[index] + operation.steps)
    for operation, later in zip(operations, behind, strict=True):
        if _goes_on(operation):
            operation.roundings = _most(operation, [operations[parent] for parent in operation.inputs])
        else:
            operation.roundings = operation.terms + OPERATION_SLACK * (operation.steps + later)


def _goes_on(operation: Operation) -> bool:
    return isinstance(operation, Linear) and not operation.mixes


def _most(operation: Operation, parents: Sequence[Operation]) -> Tensor | int:
    """Return the most roundings that a term of a parent passes, output by output where the shapes are the same."""
    same = all(parent.out_shape == operation.out_shape for parent in parents)
    counts = [torch.as_tensor(parent.roundings) for parent in parents]
    most = counts[0] if same else counts[0].amax()
    for count in counts[1:]:
        most = torch.maximum(most, count if same else count.amax())
    return most
