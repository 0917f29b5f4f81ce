"""Networks with masks as plain named tensors, so that what is stored does not depend on how masks are attached.

`features.0.weight` is the weight before masking, `features.0.weight.mask` its mask and `features.0.weight.scores`,
while the search lasts, its scores.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from hydraprune.errors import UserError
from hydraprune.sparsity.masks import MaskSet, attach_fixed

_ORIGINAL = ".parametrizations.weight.original"
_PARTS = ".parametrizations.weight.0."


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network with or without masks, under plain names."""
    plain = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("parametrizations.weight."):
            raise UserError("a bare layer cannot be stored; wrap it in a module such as nn.Sequential")
        plain[name.replace(_ORIGINAL, ".weight").replace(_PARTS, ".weight.")] = tensor.detach().contiguous()
    return plain


def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> MaskSet | None:
    """Load what `plain_state` returned into a module without masks, in place; scores are left out.

    Returns:
        The fixed masks, or None for a dense network.

    Raises:
        UserError: the tensors are not those of this network; the first that differs is named.
    """
    masks = {name.removesuffix(".mask"): tensor for name, tensor in tensors.items() if name.endswith(".weight.mask")}
    weights = {
        name: tensor for name, tensor in tensors.items() if not name.endswith((".weight.mask", ".weight.scores"))
    }
    expected = model.state_dict()
    for name in sorted(set(expected) | set(weights)):
        came = tuple(weights[name].shape) if name in weights else None
        wanted = tuple(expected[name].shape) if name in expected else None
        if came != wanted:
            raise UserError(
                f"the stored network does not fit {type(model).__name__}: '{name}' is {came or 'missing'} in the "
                f"file and {wanted or 'missing'} in the network"
            )
    model.load_state_dict(weights)
    return attach_fixed(model, masks) if masks else None
