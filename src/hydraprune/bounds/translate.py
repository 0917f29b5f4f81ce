"""From a node of torch.fx to the operation that bounds it; whatever is not here has no bound."""

from torch import fx

from hydraprune.bounds.calls import FUNCTIONS, METHODS, Found
from hydraprune.bounds.modules import LEAVES
from hydraprune.bounds.site import Site, unsupported


def translate(node: fx.Node, site: Site) -> Found:
    """Return the parents of a node that depend on the input, and its operation; its number of parents may be 2.

    Raises:
        UserError: the operation has no bound; the message names node and operation.
    """
    try:
        return _module(node, site) if node.op == "call_module" else _call(node, site)
    except (TypeError, ValueError, IndexError) as error:
        raise unsupported(node, f"with these arguments: {error}") from None


def _module(node: fx.Node, site: Site) -> Found:
    module = site.model.get_submodule(str(node.target))
    for kind, make in LEAVES.items():
        if isinstance(module, kind):
            if node.kwargs or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
                raise unsupported(node, f"({type(module).__name__}) called with more than one tensor, by position")
            return [node.args[0]], make(node, node.args[0], module, site)
    raise unsupported(node, f"({type(module).__name__})")


def _call(node: fx.Node, site: Site) -> Found:
    make_call = (METHODS if node.op == "call_method" else FUNCTIONS).get(node.target)
    if make_call is None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        raise unsupported(node, f"({name})")
    return make_call(node, site, *node.args, **node.kwargs)
