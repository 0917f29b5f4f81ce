"""A criterion that is a function of the user's own."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hydraprune.errors import UserError
from hydraprune.sparsity.criteria import CRITERIA, Criterion


class OwnFunction(Criterion):
    """Score = what a function returns for each layer's weight; importance is its magnitude.

    Args:
        function: weight (out, in, ...) -> finite scores of its shape.
        name: what messages call it.

    Raises:
        UserError: when scoring, if the function fails or returns anything else.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], name: str) -> None:
        self._function = function
        self._name = name

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - the function's own affair
        """Return the function's scores."""
        try:
            came: Any = self._function(weight.clone())
        except Exception as error:
            raise UserError(f"criterion '{self._name}' failed: {type(error).__name__}: {error}") from error
        if not isinstance(came, Tensor) or came.shape != weight.shape or not torch.isfinite(came).all():
            what = f"shape {tuple(came.shape)}" if isinstance(came, Tensor) else type(came).__name__
            raise UserError(
                f"criterion '{self._name}' returned {what} for a weight of shape {tuple(weight.shape)}; "
                "wanted finite scores of that shape"
            )
        return torch.empty_like(weight).copy_(came.detach())


@CRITERIA.register("function")
@dataclass(frozen=True)
class Function(Criterion):
    """Score = what your function `package.module:function` returns for each layer's weight.

    Args:
        function: takes a weight (out, in, ...), returns finite scores of its shape; importance is their magnitude.
            The module is imported and the function called, so name only code that you trust.

    Raises:
        UserError: when scoring, if it cannot be found, fails, or returns anything else.
    """

    function: str = "torch:abs"

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the function's scores."""
        return OwnFunction(_found(self.function), self.function).scores(weight, generator)


def _found(target: str) -> Callable[[Tensor], Any]:
    module, colon, name = target.partition(":")
    if not (colon and name):
        raise UserError(f"criterion: '{target}' does not name a function; write package.module:function")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"criterion '{target}' cannot be found: {error}") from None
    if not callable(found):
        raise UserError(f"criterion '{target}' is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]
