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
    if node.op == "call_module":
        module = site.model.get_submodule(str(node.target))
        for kind, make in LEAVES.items():
            if isinstance(module, kind):
                parent = node.args[0]
                assert isinstance(parent, fx.Node)
                return [parent], make(node, parent, module, site)
        raise unsupported(node, f"({type(module).__name__})")
    make_call = (METHODS if node.op == "call_method" else FUNCTIONS).get(node.target)
    if make_call is None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        raise unsupported(node, f"({name})")
    try:
        found: Found = make_call(node, site, *node.args, **node.kwargs)
    except TypeError as error:
        raise unsupported(node, f"with these arguments: {error}") from None
    return found
