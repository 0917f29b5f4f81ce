"""Linear bounds by one pass back through the graph (CROWN, Zhang et al. 2018, arXiv 1811.00866).

A linear function A·y of a node's output is rewritten as one of its inputs', node by node, until only the network's
input is left, where its extremes over the region are known. At a linear node this is exact; at a nonlinear one the
function is replaced by lines below it (docs/soundness.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.bounds.nonlinear import Relaxation, dot
from hydraprune.bounds.operations import Input, Linear, Operation
from hydraprune.bounds.region import Region

_SUM_SLACK = 2.0**-29
"""Relative error granted to the few scalars that make a bound."""


@dataclass(frozen=True)
class Relaxed:
    """A network each of whose nonlinear nodes lies between lines.

    Args:
        operations: the nodes in order, the input first.
        relaxations: of nonlinear nodes.
        errors: bound on |computed − exact| of each node, (batch, ...); None for exact arithmetic.
        region: where the input lies.
    """

    operations: Sequence[Operation]
    relaxations: Mapping[int, Relaxation]
    errors: Mapping[int, Tensor] | None
    region: Region

    def take(self, rows: Tensor) -> "Relaxed":
        """Return the same with one sample for each entry of `rows`."""
        errors = None if self.errors is None else {index: error[rows] for index, error in self.errors.items()}
        relaxations = {index: relaxation.take(rows) for index, relaxation in self.relaxations.items()}
        return Relaxed(self.operations, relaxations, errors, self.region.take(rows))

    def split(self, count: int) -> list["Relaxed"]:
        """Return the same for `count` samples at a time."""
        relaxations = {index: relaxation.split(count) for index, relaxation in self.relaxations.items()}
        chunks = []
        for number in range(-(-len(self.region.lower) // count)):
            rows = slice(number * count, (number + 1) * count)
            errors = None if self.errors is None else {index: error[rows] for index, error in self.errors.items()}
            some = {index: parts[number] for index, parts in relaxations.items()}
            chunks.append(Relaxed(self.operations, some, errors, self.region.take(rows)))
        return chunks


class _Sums:
    """What has been split off from the linear function: value − low ≤ it, and, on one side too, it ≤ value + high."""

    def __init__(self, like: Tensor) -> None:
        self.value = like.new_zeros(like.shape[:2])
        self.low = self.high = self.gross = self.value

    def add(self, part: Tensor) -> None:
        self.value = self.value + part
        self.gross = self.gross + part.abs()

    def lose(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = self.low + low, self.high + high
        self.gross = self.gross + low.abs() + high.abs()

    def double(self) -> None:
        self.value = torch.cat([self.value, -self.value], 1)
        self.low = torch.cat([self.low, self.high], 1)
        self.high, self.gross = self.low, torch.cat([self.gross, self.gross], 1)


def linear_bounds(relaxed: Relaxed, start: int, rows: Tensor, both: bool) -> tuple[Tensor, Tensor | None]:
    """Return bounds (batch, m) below and, where `both` are wanted, above `rows` · output of node `start`.

    Rows for both sides are the same up to the first lines that are not parallel; from there on the upper bound of
    A·y is minus the lower bound of −A·y.

    Args:
        relaxed: the network.
        start: the number of a node.
        rows: (batch, m, *its shape).
        both: whether to bound from above too.
    """
    pending = {start: rows}
    sums, width, doubled = _Sums(rows), rows.shape[1], False
    for index in range(start, -1, -1):
        if index not in pending:
            continue
        part, operation = pending.pop(index), relaxed.operations[index]
        if relaxed.errors is not None:
            lost = dot(part.abs(), relaxed.errors[index])
            sums.lose(lost, lost)
        if isinstance(operation, Input):
            lowest, highest = relaxed.region.extremes(part)
            middle, half = (lowest + highest) / 2, (highest - lowest) / 2
            sums.add(middle)
            sums.lose(half, half)
        elif isinstance(operation, Linear):
            if operation.bias is not None:
                sums.add(dot(part, operation.bias.expand(operation.out_shape).unsqueeze(0)))
            pulled = operation.pull(part.flatten(0, 1))
            for parent, piece in zip(operation.inputs, pulled, strict=True):
                _give(pending, parent, piece.reshape(*part.shape[:2], *piece.shape[1:]), relaxed, sums)
        else:
            relaxation = relaxed.relaxations[index]
            if both and not (doubled or relaxation.parallel):
                pending = {node: torch.cat([other, -other], 1) for node, other in pending.items()}
                part, doubled = torch.cat([part, -part], 1), True
                sums.double()
            replaced, low, high = relaxation.pull(part)
            sums.lose(low, high)
            _give(pending, operation.inputs[0], replaced, relaxed, sums)
    if relaxed.errors is not None:
        slack = _SUM_SLACK * sums.gross
        sums.lose(slack, slack)
    lower = sums.value - sums.low
    if not both:
        return lower, None
    if doubled:
        return lower[:, :width], -lower[:, width:]
    return lower, sums.value + sums.high


def _give(pending: dict[int, Tensor], parent: int, piece: Tensor, relaxed: Relaxed, sums: _Sums) -> None:
    """Add coefficients of a node; the sum rounds by less than a sixteenth of what the node's error pays for."""
    if parent not in pending:
        pending[parent] = piece
        return
    if relaxed.errors is not None:
        lost = dot(pending[parent].abs() + piece.abs(), relaxed.errors[parent]) / 16
        sums.lose(lost, lost)
    pending[parent] = pending[parent] + piece
