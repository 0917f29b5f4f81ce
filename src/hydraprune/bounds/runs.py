"""What a run of a traced graph shows: every node's value, and what is changed in place.

Which tensors share memory is seen where they are made, so a view is known whatever made it: dropout that is off
returns its input, and a reshape may or may not copy.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from hydraprune.bounds.site import unsupported


@dataclass
class _Held:
    """A tensor that a node returned: kept, as its memory would be given to another otherwise."""

    tensor: Tensor
    version: int


class Run(fx.Interpreter):
    """Runs a graph and keeps every node's value, tensors by their shape and dtype alone once it is over.

    Attributes:
        seen: node -> its value, a tensor on the device `meta`.
        changes: of each node that changes memory in place, the nodes before it that returned this memory.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Any] = {}
        self.changes: dict[fx.Node, set[fx.Node]] = {}
        self._held: dict[fx.Node, _Held] = {}

    def run(self, *args: Any, **keywords: Any) -> Any:
        """Run the graph; nothing is kept for gradients."""
        with torch.inference_mode(False), torch.no_grad():
            try:
                return super().run(*args, **keywords)
            finally:
                self._held.clear()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and look at what it did."""
        value = super().run_node(n)
        changed = {_memory(held.tensor) for held in self._held.values() if _version(held.tensor) != held.version}
        if changed:
            self.changes[n] = {node for node, held in self._held.items() if _memory(held.tensor) in changed}
        if isinstance(value, Tensor):
            self._held[n] = _Held(value, 0)
        for held in self._held.values():
            held.version = _version(held.tensor)
        self.seen[n] = value.to("meta") if isinstance(value, Tensor) else value
        return value


def refuse_changes(run: Run) -> None:
    """Raise where memory is changed in place that is not the network's own, or that is read again by an older name.

    Raises:
        UserError: it names node and operation.
    """
    order = {node: number for number, node in enumerate(run.graph.nodes)}
    for node, before in run.changes.items():
        if any(one.op == "placeholder" for one in before):
            raise unsupported(node, "that changes the network's input in place")
        if any(one.op == "get_attr" for one in before):
            raise unsupported(node, "that changes a parameter or buffer in place")
        if any(order[reader] > order[node] for one in before for reader in one.users):
            raise unsupported(node, "that changes what others read in place")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _version(tensor: Tensor) -> int:
    """Return how often the memory was changed; 0 for tensors of inference mode, which nothing may change here."""
    return 0 if tensor.is_inference() else tensor._version
