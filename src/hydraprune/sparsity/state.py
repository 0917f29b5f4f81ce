"""Networks with masks as plain named tensors, so that what is stored does not depend on how masks are attached.

`features.0.weight` is the weight before masking, `features.0.weight.mask` its mask and, while the search lasts,
`features.0.weight.scores` its scores and `features.0.weight.rate` its layer's learned rate.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from hydraprune.errors import UserError
from hydraprune.sparsity.mask import has_mask
from hydraprune.sparsity.masks import MaskSet
from hydraprune.sparsity.surgery import attach_fixed


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network with or without masks, under plain names.

    No two of the tensors share memory: tied weights come twice. Parametrizations of the user's own keep their names.
    """
    if has_mask(model):
        raise UserError("a bare layer cannot be stored; wrap it in a module such as nn.Sequential")
    masked = {name for name, module in model.named_modules(remove_duplicate=False) if has_mask(module)}
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().contiguous()
        memory = stored.untyped_storage().data_ptr()
        plain[_plain_name(name, masked)] = stored.clone() if memory in seen else stored
        seen.add(memory)
    return plain


def _plain_name(name: str, masked: set[str]) -> str:
    module, _, part = name.partition(".parametrizations.weight.")
    if module not in masked or not part:
        return name
    return f"{module}.weight" if part == "original" else f"{module}.weight.{part.removeprefix('0.')}"


def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> MaskSet | None:
    """Load what `plain_state` returned into a module without masks, in place; scores are left out.

    Returns:
        The fixed masks, or None for a dense network.

    Raises:
        UserError: the tensors are not those of this network; the first that differs is named, and the network is as
            it was.
    """
    expected = model.state_dict()
    masks = {
        name.removesuffix(".mask"): tensor
        for name, tensor in tensors.items()
        if name.endswith(".weight.mask") and name not in expected
    }
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if name in expected or not name.endswith((".weight.mask", ".weight.scores", ".weight.rate"))
    }
    for name in sorted(set(expected) | set(weights)):
        _compare(model, name, weights.get(name), expected.get(name))
    for name, mask in masks.items():
        _compare(model, f"{name}.mask", mask, expected.get(name))
    model.load_state_dict(weights)
    return attach_fixed(model, masks) if masks else None


def _compare(model: nn.Module, name: str, came: Tensor | None, wanted: Tensor | None) -> None:
    if came is None or wanted is None or came.shape != wanted.shape:
        raise UserError(
            f"the stored network does not fit {type(model).__name__}: '{name}' is {_describe(came)} in the file and "
            f"{_describe(wanted)} in the network"
        )


def _describe(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
