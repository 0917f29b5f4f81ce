"""Which layers make a network's outputs, by its graph: not by the order in which modules list them."""

from torch import fx, nn

from hydraprune.sparsity.prunable import PRUNABLE


def last_layers(model: nn.Module, graph: fx.Graph) -> set[str]:
    """Return the Conv and Linear layers from which a path leads to the output without another one on it.

    Args:
        model: that was traced.
        graph: by torch.fx.
    """
    found: set[str] = set()
    seen: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        layers = _layers_in(model, node)
        found |= layers
        if not layers:
            waiting.extend(node.all_input_nodes)
    return found


def _layers_in(model: nn.Module, node: fx.Node) -> set[str]:
    """Return the Conv and Linear layers that a node computes: calls, has inside, or takes the weight of."""
    if node.op == "call_module":
        inside = model.get_submodule(str(node.target)).named_modules(prefix=str(node.target))
        return {name for name, module in inside if isinstance(module, PRUNABLE)}
    fetched = [str(one.target).rpartition(".") for one in node.all_input_nodes if one.op == "get_attr"]
    return {
        module
        for module, _, name in fetched
        if name == "weight" and isinstance(model.get_submodule(module), PRUNABLE)
    }
